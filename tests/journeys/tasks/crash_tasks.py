"""Tasks that wait, block or kill their process, and note where they are."""

import asyncio
import os
import time
from pathlib import Path

from pydantic import BaseModel

from tandem_worker import task
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob


class Scene(BaseModel):
    """Two files: `notes` gets a line for each step of the code, `go` lets it end once it exists."""

    notes: Path
    go: Path

    def note(self, word: str, attempt: int) -> None:
        # One appending write each, so that the lines of several processes do not mix.
        with self.notes.open("a", encoding="utf-8") as file:
            file.write(f"{word} {attempt} {os.getpid()}\n")


@task("crash.quick")
async def quick(payload: int) -> int:
    return payload


@task("crash.waits")
async def waits(job: Job, payload: Scene) -> int:
    payload.note("begun", job.attempt)
    while not payload.go.exists():
        await asyncio.sleep(0.02)
    payload.note("ended", job.attempt)
    return os.getpid()


@task("crash.deaf")
async def deaf(job: Job, payload: Scene) -> int:
    """Outlives its attempt: what it returns comes from an attempt that has long been given up."""
    payload.note("begun", job.attempt)
    while not payload.go.exists():
        try:
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            payload.note("cancelled", job.attempt)
            break
    payload.note("ended", job.attempt)
    return os.getpid()


@task("crash.exits")
async def exits(job: Job, payload: Scene) -> None:
    payload.note("begun", job.attempt)
    os._exit(7)


@task("crash.blocks")
async def blocks(job: Job, payload: Scene) -> int:
    """Blocks the event loop for longer than a lease."""
    payload.note("begun", job.attempt)
    time.sleep(2.5)
    return job.attempt


@task("crash.thread")
def thread(job: SyncJob, payload: Scene) -> None:
    payload.note("begun", job.attempt)
    while not job.cancelled:
        time.sleep(0.02)
    payload.note("cancelled", job.attempt)


@task("crash.cpu", cpu=True)
def cpu(job: SyncJob, payload: Scene) -> None:
    payload.note("begun", job.attempt)
    try:
        while True:
            sum(range(10_000))
    finally:
        payload.note("cancelled", job.attempt)
