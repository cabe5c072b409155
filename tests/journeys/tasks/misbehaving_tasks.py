"""Code that does not end when its job does, and code that tries to end its worker."""

import asyncio
import time

from tandem_worker import Job, RetryPolicy, SyncJob, task

ONCE = RetryPolicy(max_attempts=1)


@task("bad.swallows", timeout="1s", retry=ONCE)
async def swallows() -> None:
    while True:
        try:
            await asyncio.sleep(0.2)
            raise ConnectionError("not yet")
        except:  # noqa: E722 - the usual mistake
            await asyncio.sleep(0)


@task("bad.shields", timeout="1s", retry=ONCE)
async def shields() -> None:
    waiting = asyncio.ensure_future(asyncio.sleep(3600))
    while not waiting.done():
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            continue


@task("bad.hangs", timeout="1s", retry=ONCE)
def hangs() -> None:
    time.sleep(3600)


@task("bad.spins", timeout="1s", retry=ONCE)
async def spins() -> None:
    while True:
        pass


@task("bad.interrupts", retry=ONCE)
async def interrupts(payload: str) -> None:
    async def interrupt() -> None:
        raise KeyboardInterrupt

    if payload == "nested":
        await asyncio.create_task(interrupt())
    await interrupt()


@task("bad.interrupts_thread", retry=ONCE)
def interrupts_thread() -> None:
    raise KeyboardInterrupt


@task("good.async")
async def good_async(job: Job, payload: int) -> int:
    await asyncio.sleep(0.01)
    return payload


@task("good.thread")
def good_thread(job: SyncJob, payload: int) -> int:
    return payload


@task("good.cpu", cpu=True, timeout="1s", retry=ONCE)
def good_cpu(payload: int) -> int:
    """Takes most of its timeout: jobs that wait for its process must not be charged for that."""
    time.sleep(0.6)
    return payload
