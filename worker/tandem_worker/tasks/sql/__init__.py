"""The built-in tasks `sql.*`."""
