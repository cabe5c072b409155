"""Tasks that keep the event loop from all others."""

import asyncio
import time

from tandem_worker import Job, task


@task("blocking.sleeps", timeout="1s")
async def sleeps(payload: float) -> str:
    time.sleep(payload)
    return "done"


@task("blocking.spins", timeout="1s")
async def spins(job: Job) -> None:
    job.log.info("spinning")
    await asyncio.sleep(0.1)  # the line is written
    while True:
        pass
