"""What the API and the workers have in common: the job, the queue, the files, the settings. Imports neither of them."""
