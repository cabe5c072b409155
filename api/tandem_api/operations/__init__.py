"""Endpoints for operators: tasks, queues, health, metrics."""
