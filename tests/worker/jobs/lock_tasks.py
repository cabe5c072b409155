"""Tasks of each kind that hold a lock and note its fence when they acquire and release it."""

import asyncio
import time
from pathlib import Path

from pydantic import BaseModel

from tandem_worker import task
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob


class Door(BaseModel):
    notes: Path
    holds: float = 0.0  # seconds
    wait: float | None = None  # seconds

    def note(self, word: str, fence: int) -> None:
        with self.notes.open("a", encoding="utf-8") as file:
            file.write(f"{word} {fence}\n")

    def fences(self) -> list[int]:
        """The fences of the holders in order; fails if two held the lock at the same time."""
        lines = [line.split() for line in self.notes.read_text().splitlines()]
        assert [word for word, _ in lines] == ["in", "out"] * (len(lines) // 2), lines
        assert [fence for _, fence in lines[::2]] == [fence for _, fence in lines[1::2]]
        return [int(fence) for _, fence in lines[::2]]


@task("locks.async")
async def asynchronous(job: Job, payload: Door) -> int:
    async with job.lock("door", wait=payload.wait) as lock:
        payload.note("in", lock.fence)
        await asyncio.sleep(payload.holds)
        payload.note("out", lock.fence)
        return lock.fence


def _plainly(job: SyncJob, payload: Door) -> int:
    with job.lock("door", wait=payload.wait) as lock:
        payload.note("in", lock.fence)
        time.sleep(payload.holds)
        payload.note("out", lock.fence)
        return lock.fence


@task("locks.plain")
def plain(job: SyncJob, payload: Door) -> int:
    return _plainly(job, payload)


@task("locks.cpu", cpu=True)
def cpu(job: SyncJob, payload: Door) -> int:
    return _plainly(job, payload)
