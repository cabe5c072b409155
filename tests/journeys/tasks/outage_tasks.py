"""Tasks for outages: two run until a file exists, one returns at once, one writes a file."""

import asyncio
from collections.abc import AsyncIterator

from tandem_worker import task
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tests.journeys.tasks.crash_tasks import Scene


@task("outage.streams")
async def streams(job: Job, payload: Scene) -> AsyncIterator[dict[str, int]]:
    payload.note("begun", job.attempt)
    number = 0
    while not payload.go.exists():
        yield {"number": number}
        number += 1
        await asyncio.sleep(0.1)
    payload.note("ended", job.attempt)


@task("outage.waits")
async def waits(job: Job, payload: Scene) -> int:
    payload.note("begun", job.attempt)
    while not payload.go.exists():
        await asyncio.sleep(0.02)
    payload.note("ended", job.attempt)
    return job.attempt


@task("outage.quick")
async def quick(payload: int) -> int:
    return payload


@task("outage.writes")
async def writes(job: Job) -> FileRef:
    return await job.files.write("words.txt", b"words")
