"""A job's stream over HTTP and WebSocket."""
