"""taskiq-redis with the best settings found: stream broker, 100 concurrent tasks, uvloop."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import uvloop
from redis.asyncio import Redis
from taskiq import TaskiqEvents, TaskiqState
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from bench.peers import driver

for _name in ("taskiq", "taskiq.receiver.receiver"):
    logging.getLogger(_name).setLevel(logging.WARNING)
WORKER = (
    *("-m", "taskiq", "worker", "bench.peers.taskiq:broker"),
    *("--workers", "1", "--log-level", "WARNING"),
    *("--max-async-tasks", str(driver.CONCURRENCY), "--max-prefetch", str(driver.CONCURRENCY)),
)

results: Any = RedisAsyncResultBackend(
    driver.URL, serializer=ORJSONSerializer(), result_ex_time=3600
)
broker: Any = (
    RedisStreamBroker(driver.URL, consumer_id="0")
    .with_result_backend(results)
    .with_serializer(ORJSONSerializer())
)


@broker.task("noop")
async def noop(**payload: Any) -> None:
    """Do nothing."""


@broker.task("sleep")
async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def started(state: TaskiqState) -> None:
    redis = Redis.from_url(driver.URL)
    await redis.incr(driver.READY)
    await redis.aclose()


class Client:
    def __init__(self, redis: Any) -> None:
        self.redis = redis
        self._arrivals = driver.Arrivals(self._present)

    async def _present(self, ids: Sequence[str]) -> int:
        return int(await self.redis.exists(*ids))

    async def ready(self) -> int:
        return int(await self.redis.get(driver.READY) or 0)

    async def submit(self, count: int, seconds: float) -> list[str]:
        async def enqueue() -> str:
            task = await (sleep.kiq(seconds) if seconds else noop.kiq(**driver.PAYLOAD))
            return str(task.task_id)

        return await driver.many(enqueue, count)

    async def finished(self, ids: Sequence[str]) -> bool:
        return await self._arrivals.all(ids)

    async def succeeded(self, ids: Sequence[str]) -> int:
        succeeded = 0
        for start in range(0, len(ids), 500):
            found = await asyncio.gather(
                *(results.get_result(id) for id in ids[start : start + 500])
            )
            succeeded += sum(not one.is_err for one in found)
        return succeeded

    async def round_trip(self) -> None:
        task = await noop.kiq(**driver.PAYLOAD)
        await task.wait_result(check_interval=0.001, timeout=driver.TIMEOUT_SECONDS)

    async def ledger_is_current(self) -> bool:
        return True


async def open_client() -> Client:
    await broker.startup()
    return Client(Redis.from_url(driver.URL))


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    driver.serve(open_client, WORKER)
