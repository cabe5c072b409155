"""Tasks that log, print, and make the mistakes of every day."""

import asyncio
import logging
import sys
from typing import Any

import structlog

from tandem_worker import Job, RetryPolicy, SyncJob, task

log = logging.getLogger("shop.billing")
events = structlog.get_logger("shop.events")


@task("logged.async")
async def on_the_loop(job: Job) -> None:
    say("async")
    job.log.warning("from the job", name="taken", page=3)
    await asyncio.to_thread(log.info, "from a thread of %s", "async")


@task("logged.thread")
def in_a_thread(job: SyncJob) -> None:
    say("thread")
    job.log.warning("from the job", name="taken", page=3)


@task("logged.process", cpu=True)
def in_a_process(job: SyncJob) -> None:
    say("process")
    job.log.warning("from the job", name="taken", page=3)


def say(kind: str) -> None:
    log.warning("card %d declined", 5, extra={"carrier": kind})
    events.info("ordered", order=17)
    print("printed", kind)  # noqa: T201 - what the test is about
    sys.stdout.write("no end of line")


@task("logged.forgotten")
async def forgotten(job: Job) -> str:
    job.emit({"x": 1})  # type: ignore[unused-coroutine] # the mistake that the test is about
    return "done"


@task("logged.coroutine")
async def returned() -> Any:
    return asyncio.sleep(1)


@task("logged.value")
def wrong_value(payload: str) -> Any:
    return {"nan": float("nan"), "bytes": b"abc", "key": {(1, 2): 3}, "set": {b"x"}}[payload]


@task("logged.fails", retry=RetryPolicy(max_attempts=2, base=0.01))
async def fails() -> None:
    inner()


def inner() -> None:
    raise LookupError("no such card")
