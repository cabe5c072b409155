"""The worker process: it claims, runs, prefetches, reports, finishes and drains."""
