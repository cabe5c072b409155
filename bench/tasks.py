"""The same job on both sides: it gets a payload, does nothing, and returns nothing.

`python -m worker` finds it by TANDEM_TASKS=bench.tasks, and `python -m arq bench.tasks.ArqWorker` runs plain arq at the
best settings found: batches of 100 jobs, a poll every 10 ms, uvloop, JSON by msgspec, nothing logged for each job.
"""

import asyncio
import logging
import os
import random
from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec
import uvloop
from arq.connections import RedisSettings
from pydantic import BaseModel

from worker import Job, RetryPolicy, task

READY = "bench:ready"  # how many arq workers have started


@task("bench.noop", timeout="30s", retry=RetryPolicy(max_attempts=3))
async def noop(job: Job, payload: dict[str, Any]) -> None:
    """Does nothing."""


async def arq_noop(ctx: dict[str, Any], **payload: Any) -> None:
    """Does nothing."""


async def ready(ctx: dict[str, Any]) -> None:
    await ctx["redis"].incr(READY)


class ArqWorker:
    """What `python -m arq` takes. Results are kept for an hour, arq's own default."""

    functions: ClassVar = [arq_noop]
    redis_settings = RedisSettings.from_dsn(os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/0"))
    max_jobs = 100
    poll_delay = 0.01
    on_startup = ready
    log_results = False
    job_serializer = msgspec.json.encode
    job_deserializer = msgspec.json.decode


# arq's command line logs two lines a job and takes whatever event loop the policy makes.
SILENT = {"version": 1, "disable_existing_loggers": False, "loggers": {"arq": {"level": logging.WARNING}}}
if "BENCH_REDIS_URL" in os.environ:
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


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
