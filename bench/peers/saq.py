"""saq with the best settings found: 100 concurrent jobs, uvloop, hiredis, msgspec, no log lines."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import msgspec
import uvloop
from saq import Status
from saq.queue.redis import RedisQueue

from bench.peers import driver

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
logging.getLogger("saq").setLevel(logging.WARNING)  # it logs two lines per job
WORKER = ("-m", "saq", "bench.peers.saq.SETTINGS", "--quiet")


async def noop(ctx: dict[str, Any], **payload: Any) -> None:
    """Do nothing."""


async def sleep(ctx: dict[str, Any], *, seconds: float) -> None:
    await asyncio.sleep(seconds)


async def started(ctx: dict[str, Any]) -> None:
    await ctx["worker"].queue.redis.incr(driver.READY)


def new_queue() -> Any:
    return RedisQueue.from_url(
        driver.URL,
        dump=msgspec.json.encode,
        load=msgspec.json.decode,
        max_concurrent_ops=driver.CONCURRENCY,
    )


SETTINGS = {
    "queue": new_queue(),
    "functions": [noop, sleep],
    "concurrency": driver.CONCURRENCY,
    "startup": started,
}


class Client:
    def __init__(self, queue: Any) -> None:
        self.queue = queue

    async def ready(self) -> int:
        return int(await self.queue.redis.get(driver.READY) or 0)

    async def submit(self, count: int, sleep: float) -> list[str]:
        async def enqueue() -> str:
            if sleep:
                job = await self.queue.enqueue("sleep", seconds=sleep)
            else:
                job = await self.queue.enqueue("noop", **driver.PAYLOAD)
            return str(job.key)

        return await driver.many(enqueue, count)

    async def finished(self, ids: Sequence[str]) -> bool:
        return not await self.queue.count("incomplete")

    async def succeeded(self, ids: Sequence[str]) -> int:
        succeeded = 0
        for start in range(0, len(ids), 500):
            jobs = await self.queue.jobs(ids[start : start + 500])
            succeeded += sum(job is not None and job.status == Status.COMPLETE for job in jobs)
        return succeeded

    async def round_trip(self) -> None:
        await self.queue.apply("noop", poll_interval=0.001, **driver.PAYLOAD)

    async def ledger_is_current(self) -> bool:
        return True


async def open_client() -> Client:
    queue = new_queue()
    await queue.connect()
    return Client(queue)


if __name__ == "__main__":
    driver.serve(open_client, WORKER)
