"""The tasks of a chaos run: each appends what it did to the effects log, so that repeats show."""

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator
from functools import cache

import msgspec
from pydantic import BaseModel

from tandem_worker import FileRef, Job, Permanent, SyncJob, task


class Work(BaseModel):
    """`key` identifies the submission, as in the client's log."""

    key: str
    seconds: float = 0.0
    fails: int = 0  # attempts that fail before one succeeds
    count: int = 0  # items, or bytes
    lock: str = ""


@cache
def _effects() -> int:
    return os.open(os.environ["CHAOS_EFFECTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def effect(job: Job | SyncJob, payload: Work, word: str, stamp: int = 0, fence: int = 0) -> None:
    """Append a line; `stamp` is the attempt's (0 in threads), `fence` that of a lock."""
    line = {
        "job": job.id,
        "key": payload.key,
        "attempt": job.attempt,
        "stamp": stamp,
        "word": word,
        "fence": fence,
    }
    # A single write to a file opened for appending, so that lines of several processes do not mix.
    os.write(_effects(), msgspec.json.encode(line) + b"\n")


def _sleep(seconds: float) -> None:
    """Block the thread; faketime breaks the absolute times with which time.sleep waits."""
    threading.Event().wait(seconds)


@task("chaos.quick")
async def quick(job: Job, payload: Work) -> int:
    effect(job, payload, "began", job.stamp)
    effect(job, payload, "done", job.stamp)
    return job.stamp


@task("chaos.slow")
async def slow(job: Job, payload: Work) -> int:
    effect(job, payload, "began", job.stamp)
    await job.progress(0, 1, "started")
    await asyncio.sleep(payload.seconds)
    effect(job, payload, "done", job.stamp)
    return job.stamp


@task("chaos.blocks")
async def blocks(job: Job, payload: Work) -> int:
    """Keep the whole event loop busy, as a task with a mistake does."""
    effect(job, payload, "began", job.stamp)
    _sleep(payload.seconds)
    effect(job, payload, "done", job.stamp)
    return job.stamp


@task("chaos.thread")
def thread(job: SyncJob, payload: Work) -> int:
    _sleep(payload.seconds)
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
    """The stamp of the attempt that ran each step."""

    async def do(number: int) -> int:
        await asyncio.sleep(payload.seconds)
        effect(job, payload, f"step {number}", job.stamp)
        return job.stamp

    stamps = [await job.step(f"step {number}", do, number) for number in range(payload.count)]
    effect(job, payload, "done", job.stamp)
    return stamps


@task("chaos.flaky")
async def flaky(job: Job, payload: Work) -> int:
    if job.attempt <= payload.fails:
        raise RuntimeError("not yet")
    effect(job, payload, "done", job.stamp)
    return job.stamp


@task("chaos.refuses")
async def refuses(job: Job, payload: Work) -> None:
    effect(job, payload, "refused")
    raise Permanent("refused", "this task always refuses")


@task("chaos.late")
async def late(job: Job, payload: Work) -> None:
    effect(job, payload, "started")
    await asyncio.sleep(3600)


@task("chaos.poison")
async def poison(job: Job, payload: Work) -> None:
    effect(job, payload, "started")
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
    """A file whose bytes are determined by the key."""
    ref = await job.files.write("made.bin", generated(payload.key, payload.count))
    effect(job, payload, "done", job.stamp)
    return ref


def generated(key: str, count: int) -> bytes:
    """`count` bytes that are determined by `key`."""
    return hashlib.shake_128(key.encode()).digest(count)
