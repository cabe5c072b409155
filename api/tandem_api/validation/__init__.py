"""Validates submitted jobs against their tasks, and explains what is wrong."""
