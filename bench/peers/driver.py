"""The client of one queue, as a process that takes commands as lines of JSON on stdin.

It runs in the virtual environment of its queue, so it imports nothing but the standard library.
Everything is timed here, around the queue's own client; the harness only decides how much to run.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import perf_counter
from typing import Any, Protocol

URL = os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/0")
CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "100"))
# Whether jobs wait instead of computing: some queues have a separate pool for that.
WAITS = bool(os.environ.get("BENCH_WAITS"))
READY = "bench:ready"  # the key that counts started workers
PAYLOAD: dict[str, Any] = {
    "customer": 4711,
    "address": "Lindenstr. 9, 10969 Berlin",
    "items": [3, 1, 4, 1, 5],
    "note": "n" * 24,
}
TIMEOUT_SECONDS = 300.0  # for any single command
POLL_SECONDS = 0.01


class Client(Protocol):
    """What each queue implements. `sleep`: seconds that a job takes, 0 for the no-op job."""

    async def ready(self) -> int:
        """How many workers have started."""

    async def submit(self, count: int, sleep: float) -> Sequence[str]:
        """Submit jobs as fast as one client can; their ids."""

    async def finished(self, ids: Sequence[str]) -> bool:
        """Whether all jobs have ended; cheap."""

    async def succeeded(self, ids: Sequence[str]) -> int:
        """How many jobs have a successful result."""

    async def round_trip(self) -> None:
        """Submit one job and return as soon as its result is known."""

    async def ledger_is_current(self) -> bool:
        """Whether everything written in addition to the queue is complete."""


async def many(call: Callable[[], Awaitable[str]], count: int, concurrency: int = 50) -> list[str]:
    """The results of `count` calls, some of them concurrent, each over its own connection."""
    ids: list[str] = []
    for start in range(0, count, concurrency):
        ids += await asyncio.gather(*(call() for _ in range(min(concurrency, count - start))))
    return ids


class Arrivals:
    """Checks results in order, each until it has arrived: in total about one check per job."""

    BATCH = 200

    def __init__(self, present: Callable[[Sequence[str]], Awaitable[int]]) -> None:
        self._present = present
        self._ids: Sequence[str] = ()
        self._arrived = 0

    async def all(self, ids: Sequence[str]) -> bool:
        if ids is not self._ids:
            self._ids, self._arrived = ids, 0
        while batch := ids[self._arrived : self._arrived + self.BATCH]:
            if await self._present(batch) < len(batch):
                return False
            self._arrived += len(batch)
        return True


class Driver:
    def __init__(self, client: Client, worker: Sequence[str]) -> None:
        self.client, self.worker = client, worker
        self.ids: list[str] = []

    async def do(self, command: str, **arguments: Any) -> Any:
        """Run one command; its answer."""
        method: Callable[..., Coroutine[Any, Any, Any]] = getattr(self, f"do_{command}")
        return await method(**arguments)

    async def do_worker(self) -> Sequence[str]:
        """The arguments that make Python a worker of this queue."""
        return self.worker

    async def do_ready(self) -> int:
        return await self.client.ready()

    async def do_submit(self, count: int, sleep: float = 0.0) -> float:
        """Submit jobs; the seconds it took."""
        start = perf_counter()
        self.ids = list(await self.client.submit(count, sleep))
        return perf_counter() - start

    async def do_finished(self) -> float:
        """When all jobs of the last submission had ended, by the clock that all processes share."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not await self.client.finished(self.ids):  # noqa: ASYNC110 - another process cannot set an event
                await asyncio.sleep(POLL_SECONDS)
        return perf_counter()

    async def do_ledger_is_current(self) -> float:
        """When the ledger had caught up, by the same clock."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not await self.client.ledger_is_current():  # noqa: ASYNC110 - see above
                await asyncio.sleep(POLL_SECONDS)
        return perf_counter()

    async def do_succeeded(self) -> int:
        return await self.client.succeeded(self.ids)

    async def do_latency(self, samples: int) -> list[float]:
        """The milliseconds of single jobs, one after another."""
        times = []
        for _ in range(samples):
            start = perf_counter()
            await self.client.round_trip()
            times.append(1000 * (perf_counter() - start))
        return times

    async def do_load(self, rate: float, seconds: float) -> int:
        """Submit jobs at a steady rate, without waiting for them; their number."""
        start, sent = perf_counter(), 0
        while (elapsed := perf_counter() - start) < seconds:
            due = int(rate * elapsed) - sent
            if due > 0:
                await self.client.submit(due, 0.0)
                sent += due
            await asyncio.sleep(POLL_SECONDS)
        return sent


async def _serve(driver: Driver) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        answer = await driver.do(**json.loads(line))
        print(json.dumps(answer), flush=True)


def serve(open_client: Callable[[], Awaitable[Client]], worker: Sequence[str]) -> None:
    """Answer commands until stdin ends. An error ends the process, with a traceback on stderr."""

    async def main() -> None:
        await _serve(Driver(await open_client(), worker))

    asyncio.run(main())
