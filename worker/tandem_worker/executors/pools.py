"""The threads and processes in which a worker runs code that must not block its event loop."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tandem_shared.settings import Settings
from tandem_worker.executors.processes import ProcessPool
from tandem_worker.executors.threads import ThreadPool


@dataclass(frozen=True)
class Pools:
    """Both start threads or processes when a job first needs one."""

    threads: ThreadPool
    processes: ProcessPool


@asynccontextmanager
async def open_pools(settings: Settings) -> AsyncIterator[Pools]:
    """Pools for one worker. At the end, the processes are ended and the threads left to finish."""
    threads = ThreadPool(settings.concurrency)
    processes = ProcessPool(log=settings.job_log, format=settings.log)
    try:
        yield Pools(threads, processes)
    finally:
        await processes.close()
        threads.close()
