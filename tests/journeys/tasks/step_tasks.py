"""Tasks with steps and locks, which note where they are."""

import asyncio

from tandem_worker import task
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob
from tests.journeys.tasks.crash_tasks import Scene


def make(scene: Scene, attempt: int) -> str:
    scene.note("first", attempt)
    return f"made by {attempt}"


async def wait(scene: Scene) -> None:
    while not scene.go.exists():
        await asyncio.sleep(0.02)


@task("steps.steps")
async def steps(job: Job, payload: Scene) -> list[str]:
    made = await job.step("first", make, payload, job.attempt)
    payload.note("between", job.attempt)
    await wait(payload)
    return [made, await job.step("second", make, payload, job.attempt)]


@task("steps.door")
async def door(job: Job, payload: Scene) -> int:
    """Notes its fence when it gets, frees or loses the lock."""
    async with job.lock("door") as lock:
        payload.note("in", lock.fence)
        try:
            await wait(payload)
        except asyncio.CancelledError:
            payload.note("lost", lock.fence)
            raise
        payload.note("out", lock.fence)
        return lock.fence


@task("steps.brief")
async def brief(job: Job, payload: Scene) -> int:
    async with job.lock("door") as lock:
        payload.note("in", lock.fence)
        await asyncio.sleep(0.01)
        payload.note("out", lock.fence)
        return lock.fence


@task("steps.thread")
def thread(job: SyncJob, payload: Scene) -> int:
    with job.lock("door") as lock:
        payload.note("in", lock.fence)
        payload.note("out", lock.fence)
        return lock.fence
