"""A job's output over HTTP and WebSocket."""
