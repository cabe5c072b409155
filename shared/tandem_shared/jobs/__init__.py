"""What a job is: ids, states, the record, replay."""
