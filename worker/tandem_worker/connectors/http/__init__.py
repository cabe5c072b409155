"""Outgoing HTTP: one pooled client, an address guard, a circuit breaker per host."""
