"""The process and the bytes: uvicorn, its limits, its children."""
