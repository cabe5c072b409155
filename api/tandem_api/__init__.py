"""The HTTP side: authenticates, validates against the catalogue, enqueues, answers and streams."""
