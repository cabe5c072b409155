"""Workers that die, hang or are left alone."""
