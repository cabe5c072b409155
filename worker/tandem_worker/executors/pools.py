"""The threads and processes in which a worker runs code that must not block its event loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tandem_shared.settings import Settings
from tandem_worker.executors.processes import ProcessPool
from tandem_worker.executors.threads import ThreadPool
from tandem_worker.executors.zombies import Zombies


@dataclass(frozen=True)
class Pools:
    """All start threads or processes when a job first needs one.

    `threads` runs `def` tasks. Steps have threads of their own, so that a job with many of them
    takes no other job's thread.
    """

    threads: ThreadPool
    steps: ThreadPool
    processes: ProcessPool


@asynccontextmanager
async def open_pools(
    settings: Settings, zombies: Zombies | None = None, grace: float = 5.0
) -> AsyncIterator[Pools]:
    """Pools for one worker. At the end, the processes are ended and the threads left to finish.

    Code in a thread that its job's end has not stopped within `grace` seconds is counted in
    `zombies`.
    """
    if zombies is None:
        zombies = Zombies(settings.max_zombies)
    threads, steps = (ThreadPool(settings.concurrency, zombies, grace) for _ in range(2))
    processes = ProcessPool(log=settings.job_log, format=settings.log)
    try:
        yield Pools(threads, steps, processes)
    finally:
        await processes.close()
        threads.close()
        steps.close()
