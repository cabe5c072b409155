"""celery with the best settings found: 2 prefork children for no-ops, gevent for waiting jobs."""

import json
import time
from collections.abc import Sequence
from typing import Any

import redis
from celery import Celery
from celery.signals import worker_ready

from bench.peers import driver

POOL = ("gevent", str(driver.CONCURRENCY)) if driver.WAITS else ("prefork", "2")
WORKER = (
    *("-m", "celery", "-A", "bench.peers.celery", "worker"),
    *("--pool", POOL[0], "--concurrency", POOL[1]),
    *("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "ERROR"),
)
SOCKET = driver.URL.removeprefix("unix://").partition("?")[0]
REDIS = f"redis+socket://{SOCKET}" if driver.URL.startswith("unix:") else driver.URL

app: Any = Celery("bench", broker=REDIS, backend=REDIS)
app.conf.update(
    worker_prefetch_multiplier=64,
    task_compression=None,
    result_expires=3600,
    broker_connection_retry_on_startup=True,
    worker_enable_remote_control=False,
)


@app.task(name="noop")
def noop(**payload: Any) -> None:
    """Do nothing."""


@app.task(name="sleep")
def sleep(seconds: float) -> None:
    time.sleep(seconds)


@worker_ready.connect
def started(**about: Any) -> None:
    redis.Redis.from_url(driver.URL).incr(driver.READY)


class Client:
    def __init__(self) -> None:
        self.redis: Any = redis.Redis.from_url(driver.URL)
        self._arrivals = driver.Arrivals(self._present)

    async def _present(self, ids: Sequence[str]) -> int:
        return int(self.redis.exists(*(f"celery-task-meta-{id}" for id in ids)))

    async def ready(self) -> int:
        return int(self.redis.get(driver.READY) or 0)

    async def submit(self, count: int, seconds: float) -> list[str]:
        return [
            str((sleep.delay(seconds) if seconds else noop.delay(**driver.PAYLOAD)).id)
            for _ in range(count)
        ]

    async def finished(self, ids: Sequence[str]) -> bool:
        return await self._arrivals.all(ids)

    async def succeeded(self, ids: Sequence[str]) -> int:
        succeeded = 0
        for start in range(0, len(ids), 500):
            bodies = self.redis.mget([f"celery-task-meta-{id}" for id in ids[start : start + 500]])
            succeeded += sum(
                body is not None and json.loads(body)["status"] == "SUCCESS" for body in bodies
            )
        return succeeded

    async def round_trip(self) -> None:
        noop.delay(**driver.PAYLOAD).get(timeout=60, interval=0.001)

    async def ledger_is_current(self) -> bool:
        return True


async def open_client() -> Client:
    return Client()


if __name__ == "__main__":
    driver.serve(open_client, WORKER)
