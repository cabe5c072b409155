"""The Python client of the HTTP API, blocking and for asyncio."""
