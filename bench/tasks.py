"""The benchmark's tasks for Tandem's worker: TANDEM_TASKS=bench.tasks."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import msgspec
from pydantic import BaseModel

from tandem_worker import Job, RetryPolicy, task


@task("bench.noop", timeout="30s", retry=RetryPolicy(max_attempts=3))
async def noop(job: Job, payload: dict[str, Any]) -> None:
    """Do nothing."""


class Sleep(BaseModel):
    seconds: float


@task("bench.sleep", timeout="1h", retry=RetryPolicy(max_attempts=3))
async def sleep(job: Job, payload: Sleep) -> None:
    """Wait."""
    await asyncio.sleep(payload.seconds)


class Flood(BaseModel):
    """`items` items of `size` bytes each, generated from `seed`."""

    items: int
    size: int
    seed: int = 1


def generated(flood: Flood) -> Iterator[bytes]:
    """The items as JSON, each different, one at a time."""
    letters = random.Random(flood.seed).randbytes(2 * flood.size).hex()[: 2 * flood.size]
    for number in range(flood.items):
        head = f'{{"n":{number},"text":"'
        start = number * 7919 % flood.size
        yield f'{head}{letters[start : start + max(0, flood.size - len(head) - 2)]}"}}'.encode()


@task("bench.flood", timeout="1h", retry=RetryPolicy(max_attempts=3))
async def flood(job: Job, payload: Flood) -> None:
    """Stream generated items as fast as possible."""
    for item in generated(payload):
        await job.emit(msgspec.Raw(item))
