"""Tasks that stream, return or raise what their payload says."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tandem_shared.retry_policy import RetryPolicy
from tandem_worker import task
from tandem_worker.errors import Permanent, Retry
from tandem_worker.jobs.job import Job


class Count(BaseModel):
    """`upto`: a file with the number of items to stream so far; without it, all `count`."""

    count: int
    width: int = 60
    upto: Path | None = None


@task("client.counts", timeout="60s")
async def counts(job: Job, payload: Count) -> AsyncIterator[dict[str, Any]]:
    for number in range(payload.count):
        while payload.upto is not None and number >= int(payload.upto.read_text() or 0):
            await asyncio.sleep(0.02)
        yield {"number": number, "text": "é" * payload.width}


class Ending(BaseModel):
    result: Any = None
    size: int = 0  # characters of a text that is returned instead
    error: str | None = None
    retries: int = 0  # attempts that fail first
    go: Path | None = None  # file to wait for


@task("client.ends", timeout="60s")
async def ends(job: Job, payload: Ending) -> Any:
    while payload.go is not None and not payload.go.exists():
        await asyncio.sleep(0.02)
    await job.progress(3, 10, "page 3")
    job.log.info("half \x1b[31mdone", page=3)
    await job.emit({"attempt": job.attempt, "text": "\x9b31m"})
    if job.attempt <= payload.retries:
        raise Retry(after="0s")
    if payload.error is not None:
        raise Permanent(payload.error, "no more cards")
    return "x" * payload.size if payload.size else payload.result


@task("client.bars", timeout="60s")
async def bars(job: Job, payload: Count) -> None:
    """Reports progress and nothing else."""
    for number in range(1, payload.count + 1):
        while payload.upto is not None and number > int(payload.upto.read_text() or 0):
            await asyncio.sleep(0.02)
        await job.progress(number, payload.count, "step " * payload.width)


class Need(BaseModel):
    path: Path


@task("client.needs", timeout="10s", retry=RetryPolicy(max_attempts=1))
def needs(payload: Need) -> str:
    """The content of the file. Fails without the file."""
    return payload.path.read_text()
