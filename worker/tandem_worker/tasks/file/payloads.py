"""What the payloads of the file tasks share."""

EXAMPLE = {"file": "01JC8XW3T4Z5PC3V8M2G7QK9RN4HDA"}
