"""Tasks of a chaos run. Each appends a line to the effects log for what it did: at least once is then a count."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from functools import cache

import msgspec
from pydantic import BaseModel

from tandem_worker import task
from tandem_worker.errors import Permanent
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob


class Work(BaseModel):
    """`key` names the submission, as the client's log does."""

    key: str
    seconds: float = 0.0
    fails: int = 0  # attempts that fail before one does not
    count: int = 0  # items, or bytes
    lock: str = ""


@cache
def _effects() -> int:
    return os.open(os.environ["CHAOS_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def effect(job: Job | SyncJob, payload: Work, word: str, stamp: int = 0, fence: int = 0) -> None:
    """`stamp` names the attempt, 0 where its code does not know it; `fence` is that of a lock."""
    line = {
        "job": job.id,
        "key": payload.key,
        "attempt": job.attempt,
        "stamp": stamp,
        "word": word,
        "fence": fence,
    }
    # One write to a file opened for appending: lines of several processes do not mix.
    os.write(_effects(), msgspec.json.encode(line) + b"\n")


@task("chaos.quick")
async def quick(job: Job, payload: Work) -> int:
    effect(job, payload, "done", job.stamp)
    return job.stamp


@task("chaos.slow")
async def slow(job: Job, payload: Work) -> int:
    await job.progress(0, 1, "begun")
    await asyncio.sleep(payload.seconds)
    effect(job, payload, "done", job.stamp)
    return job.stamp


@task("chaos.thread")
def thread(job: SyncJob, payload: Work) -> int:
    time.sleep(payload.seconds)
    effect(job, payload, "done")
    return 0


@task("chaos.locked")
async def locked(job: Job, payload: Work) -> int:
    async with job.lock(payload.lock) as lock:
        effect(job, payload, f"in {payload.lock}", job.stamp, lock.fence)
        await asyncio.sleep(payload.seconds)
        effect(job, payload, f"out {payload.lock}", job.stamp, lock.fence)
    effect(job, payload, "done", job.stamp)
    return job.stamp


@task("chaos.steps")
async def steps(job: Job, payload: Work) -> list[int]:
    """Which attempt did each of its steps."""

    async def do(number: int) -> int:
        await asyncio.sleep(payload.seconds)
        effect(job, payload, f"step {number}", job.stamp)
        return job.stamp

    found = [await job.step(f"step {number}", do, number) for number in range(payload.count)]
    effect(job, payload, "done", job.stamp)
    return found


@task("chaos.flaky")
async def flaky(job: Job, payload: Work) -> int:
    if job.attempt <= payload.fails:
        raise RuntimeError("not yet")
    effect(job, payload, "done", job.stamp)
    return job.stamp


@task("chaos.refuses")
async def refuses(job: Job, payload: Work) -> None:
    effect(job, payload, "refused")
    raise Permanent("refused", "by its nature")


@task("chaos.late")
async def late(job: Job, payload: Work) -> None:
    effect(job, payload, "begun")
    await asyncio.sleep(3600)


@task("chaos.poison")
async def poison(job: Job, payload: Work) -> None:
    effect(job, payload, "begun")
    os._exit(9)


@task("chaos.stream")
async def stream(job: Job, payload: Work) -> AsyncIterator[dict[str, int]]:
    for number in range(payload.count):
        yield {"number": number, "stamp": job.stamp}
        if number % 10 == 9:
            await asyncio.sleep(payload.seconds)
    effect(job, payload, "done", job.stamp)


@task("chaos.file")
async def file(job: Job, payload: Work) -> FileRef:
    """A file whose bytes follow from the key."""
    ref = await job.files.write("made.bin", made(payload.key, payload.count))
    effect(job, payload, "done", job.stamp)
    return ref


def made(key: str, count: int) -> bytes:
    """`count` bytes."""
    return hashlib.shake_128(key.encode()).digest(count)
