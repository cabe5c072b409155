"""The schema of the service's own database: one module per step, never changed once released."""
