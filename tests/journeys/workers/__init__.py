"""Workers whose jobs misbehave."""
