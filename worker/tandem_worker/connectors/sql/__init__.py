"""Named connections to SQLite and PostgreSQL, bound parameters, bulk loads, apply-once marks."""
