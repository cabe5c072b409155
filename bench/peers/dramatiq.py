"""dramatiq with the best settings found: 8 threads for no-op jobs, one per waiting job."""

import time
from collections.abc import Sequence
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from bench.peers import driver

WORKER = (
    *("-m", "dramatiq", "bench.peers.dramatiq:broker", "--processes", "1", "--skip-logging"),
    *("--threads", str(driver.CONCURRENCY if driver.WAITS else 8)),
)

# A thousand threads connecting at once would overflow the socket's backlog and lose results.
connections: Any = redis.BlockingConnectionPool.from_url(
    driver.URL, max_connections=128, timeout=None
)
results = RedisBackend(
    client=redis.Redis(connection_pool=connections), use_namespace_prefix_keys=True
)


class Started(dramatiq.Middleware):
    def after_worker_boot(self, broker: Any, worker: Any) -> None:
        broker.client.incr(driver.READY)


broker: Any = RedisBroker(client=redis.Redis(connection_pool=connections))
broker.add_middleware(Results(backend=results, store_results=True, result_ttl=3_600_000))
broker.add_middleware(Started())
dramatiq.set_broker(broker)


@dramatiq.actor
def noop(**payload: Any) -> None:
    """Do nothing."""


@dramatiq.actor
def sleep(seconds: float) -> None:
    time.sleep(seconds)


class Client:
    def __init__(self) -> None:
        self.redis: Any = redis.Redis.from_url(driver.URL)
        self._arrivals = driver.Arrivals(self._present)

    async def _present(self, ids: Sequence[str]) -> int:
        return int(self.redis.exists(*ids))

    async def ready(self) -> int:
        return int(self.redis.get(driver.READY) or 0)

    async def submit(self, count: int, seconds: float) -> list[str]:
        """The keys of the results, in place of ids."""
        keys = []
        for _ in range(count):
            message: Any = sleep.send(seconds) if seconds else noop.send(**driver.PAYLOAD)
            keys.append(str(results.build_message_key(message)))
        return keys

    async def finished(self, ids: Sequence[str]) -> bool:
        return await self._arrivals.all(ids)

    async def succeeded(self, ids: Sequence[str]) -> int:
        succeeded = 0
        for start in range(0, len(ids), 500):
            pipe = self.redis.pipeline(transaction=False)
            for id in ids[start : start + 500]:
                pipe.lindex(id, 0)
            succeeded += sum(
                body is not None and b'"__t": "exn"' not in body for body in pipe.execute()
            )
        return succeeded

    async def round_trip(self) -> None:
        noop.send(**driver.PAYLOAD).get_result(backend=results, block=True, timeout=60_000)

    async def ledger_is_current(self) -> bool:
        return True


async def open_client() -> Client:
    return Client()


if __name__ == "__main__":
    driver.serve(open_client, WORKER)
