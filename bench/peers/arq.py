"""Plain arq with the best settings found: 100 concurrent jobs, polls every 10 ms, uvloop."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import arq
import msgspec
import uvloop
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job, deserialize_result

from bench.peers import driver

# arq's command line runs on whatever loop the policy makes.
asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
WORKER = ("-m", "arq", "bench.peers.arq.Worker", "--custom-log-dict", "bench.peers.arq.SILENT")
SILENT = {
    "version": 1,
    "disable_existing_loggers": False,
    "loggers": {"arq": {"level": logging.WARNING}},
}


async def noop(ctx: dict[str, Any], **payload: Any) -> None:
    """Do nothing."""


async def sleep(ctx: dict[str, Any], seconds: float) -> None:
    await asyncio.sleep(seconds)


async def started(ctx: dict[str, Any]) -> None:
    await ctx["redis"].incr(driver.READY)


class Worker:
    """The settings for `python -m arq`. Results are kept for an hour, arq's default."""

    functions: ClassVar = [noop, sleep]
    redis_settings = RedisSettings.from_dsn(driver.URL)
    max_jobs = driver.CONCURRENCY
    poll_delay = 0.01
    on_startup = started
    log_results = False
    job_serializer = msgspec.json.encode
    job_deserializer = msgspec.json.decode


class Client:
    def __init__(self, redis: ArqRedis) -> None:
        self.redis = redis

    async def ready(self) -> int:
        return int(await self.redis.get(driver.READY) or 0)

    async def _enqueue(self, seconds: float = 0.0) -> Job:
        if seconds:
            job = await self.redis.enqueue_job("sleep", seconds)
        else:
            job = await self.redis.enqueue_job("noop", **driver.PAYLOAD)
        if job is None:
            raise RuntimeError("arq already has a job with this id")
        return job

    async def submit(self, count: int, sleep: float) -> list[str]:
        async def enqueue() -> str:
            return (await self._enqueue(sleep)).job_id

        return await driver.many(enqueue, count)

    async def finished(self, ids: Sequence[str]) -> bool:
        return not await self.redis.zcard("arq:queue")

    async def succeeded(self, ids: Sequence[str]) -> int:
        succeeded = 0
        for start in range(0, len(ids), 1000):
            bodies = await self.redis.mget([f"arq:result:{id}" for id in ids[start : start + 1000]])
            for body in bodies:
                succeeded += (
                    body is not None
                    and deserialize_result(body, deserializer=msgspec.json.decode).success
                )
        return succeeded

    async def round_trip(self) -> None:
        job = await self._enqueue()
        await job.result(timeout=driver.TIMEOUT_SECONDS, poll_delay=0.001)

    async def ledger_is_current(self) -> bool:
        return True


async def open_client() -> Client:
    pool = await arq.create_pool(
        RedisSettings.from_dsn(driver.URL),
        job_serializer=msgspec.json.encode,
        job_deserializer=msgspec.json.decode,
    )
    return Client(pool)


if __name__ == "__main__":
    driver.serve(open_client, WORKER)
