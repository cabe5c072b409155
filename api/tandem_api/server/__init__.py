"""The server: uvicorn with limits, its sockets, and several processes on one port."""
