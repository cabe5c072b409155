"""MongoDB: named connections, an allow-list of operators, Extended JSON."""
