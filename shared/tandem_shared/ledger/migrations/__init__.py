"""The schema of the service's own database, one step a module, applied in order and never changed afterwards."""
