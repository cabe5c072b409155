"""What a job is: its id, its states, its record, and how it is replayed."""
