"""Tasks with steps and locks whose worker is killed or stopped; they leave notes in a file."""

import asyncio

from tandem_worker import task
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob
from tests.journeys.tasks.crash_tasks import Scene


def first(scene: Scene, attempt: int) -> str:
    scene.note("first", attempt)
    return f"made by {attempt}"


async def wait(scene: Scene) -> None:
    while not scene.go.exists():
        await asyncio.sleep(0.02)


@task("own.steps")
async def steps(job: Job, payload: Scene) -> list[str]:
    made = await job.step("first", first, payload, job.attempt)
    payload.note("between", job.attempt)
    await wait(payload)
    return [made, await job.step("second", first, payload, job.attempt)]


@task("own.door")
async def door(job: Job, payload: Scene) -> int:
    """Notes its fence when it begins and ends to hold the lock, or is told that it has lost it."""
    async with job.lock("door") as lock:
        payload.note("in", lock.fence)
        try:
            await wait(payload)
        except asyncio.CancelledError:
            payload.note("lost", lock.fence)
            raise
        payload.note("out", lock.fence)
        return lock.fence


@task("own.brief")
async def brief(job: Job, payload: Scene) -> int:
    async with job.lock("door") as lock:
        payload.note("in", lock.fence)
        await asyncio.sleep(0.01)
        payload.note("out", lock.fence)
        return lock.fence


@task("own.thread")
def thread(job: SyncJob, payload: Scene) -> int:
    with job.lock("door") as lock:
        payload.note("in", lock.fence)
        payload.note("out", lock.fence)
        return lock.fence
