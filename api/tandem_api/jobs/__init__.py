"""The endpoints of jobs: submit, show, list, replay, cancel, delete."""
