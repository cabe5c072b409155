"""What a task is given: the job with its files, steps, locks, logs and reports."""
