"""The built-in tasks `mongo.*`."""
