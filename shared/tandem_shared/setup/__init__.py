"""Checks of the installation: stores that cannot keep what Tandem promises, and mismatches."""
