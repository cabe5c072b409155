"""Zip, tar and compression, as streams."""
