"""What the API, the workers and the command share: jobs, the queue, files, settings."""
