"""A job's output, read in order from Redis and the file store."""
