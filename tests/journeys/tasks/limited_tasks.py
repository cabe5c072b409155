"""Tasks with limits, one of which notes its start and its end."""

import asyncio
import os

from tandem_worker import task
from tandem_worker.jobs.job import Job
from tests.journeys.tasks.crash_tasks import Scene


@task("limited.two", concurrency=2)
async def two(job: Job, payload: Scene) -> int:
    payload.note("begun", job.attempt)
    while not payload.go.exists():
        await asyncio.sleep(0.02)
    payload.note("ended", job.attempt)
    return os.getpid()


@task("limited.paced", rate="20/s")
async def paced(payload: int) -> int:
    return payload


@task("limited.hourly", rate="1/h")
async def hourly(payload: int) -> int:
    return payload
