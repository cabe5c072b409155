"""Rows in and out of CSV, NDJSON, JSON and Parquet."""
