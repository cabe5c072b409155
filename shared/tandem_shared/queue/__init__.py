"""Every transition of a job in Redis; nothing else in Tandem sends a command to Redis."""
