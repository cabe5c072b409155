"""The worker process: claims, runs, prefetches, reports, finishes, drains."""
