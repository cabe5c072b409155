"""The jobs of the benchmark as Tandem's worker finds them, by TANDEM_TASKS=bench.tasks."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import msgspec
from pydantic import BaseModel

from tandem_shared.retry import RetryPolicy
from tandem_worker import task
from tandem_worker.jobs.job import Job


@task("bench.noop", timeout="30s", retry=RetryPolicy(max_attempts=3))
async def noop(job: Job, payload: dict[str, Any]) -> None:
    """Does nothing."""


class Nap(BaseModel):
    seconds: float


@task("bench.sleep", timeout="1h", retry=RetryPolicy(max_attempts=3))
async def sleep(job: Job, payload: Nap) -> None:
    """Waits."""
    await asyncio.sleep(payload.seconds)


class Flood(BaseModel):
    """`items` of `size` bytes each, made from a seed."""

    items: int
    size: int
    seed: int = 1


def made(flood: Flood) -> Iterator[bytes]:
    """The items as JSON: no two are alike, and none is stored."""
    letters = random.Random(flood.seed).randbytes(2 * flood.size).hex()[: 2 * flood.size]
    for number in range(flood.items):
        head = f'{{"n":{number},"text":"'
        start = number * 7919 % flood.size
        yield f'{head}{letters[start : start + max(0, flood.size - len(head) - 2)]}"}}'.encode()


@task("bench.flood", timeout="1h", retry=RetryPolicy(max_attempts=3))
async def flood(job: Job, payload: Flood) -> None:
    """Streams what it makes, as fast as it goes."""
    for item in made(payload):
        await job.emit(msgspec.Raw(item))
