"""Is this body a job? If not, where and why."""
