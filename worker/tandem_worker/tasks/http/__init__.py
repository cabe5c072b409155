"""The built-in tasks `http.*`."""
