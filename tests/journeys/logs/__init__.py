"""What workers log, as an operator reads it."""
