"""Clients that try to stop the API: `python -m tests.hostile http://127.0.0.1:8000 1000`."""
