"""The history of all jobs in SQL: written in batches, listed, searched."""
