"""/openapi.json and its pages."""
