"""The built-in tasks, one module a family."""
