"""Guarded ways to the outside."""
