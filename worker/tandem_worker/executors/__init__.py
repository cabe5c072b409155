"""Where a task's code runs: the event loop, a thread or a process."""
