"""The built-in tasks `file.*`."""
