"""The client of one queue as a process that is told what to do, line by line, in JSON.

It runs in the virtual environment of its queue, so it imports nothing but the standard library.
What is timed is timed here, beside the queue's own client: the harness only says how much.
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
WAITS = bool(
    os.environ.get("BENCH_WAITS")
)  # the jobs wait and do not compute: some queues have another pool for that
READY = "bench:ready"  # how many workers have started
PAYLOAD: dict[str, Any] = {
    "customer": 4711,
    "address": "Lindenstr. 9, 10969 Berlin",
    "items": [3, 1, 4, 1, 5],
    "note": "n" * 24,
}
PATIENCE = 300.0  # seconds for any one thing
LOOK = 0.01  # seconds between two looks at how far it is


class Client(Protocol):
    """What each queue gives. `sleep`: seconds that the job takes, 0 for the job that does nothing."""

    async def ready(self) -> int: ...  # workers that have started
    async def submit(
        self, count: int, sleep: float
    ) -> Sequence[str]: ...  # as fast as one client can; the ids
    async def finished(self, ids: Sequence[str]) -> bool: ...  # whether none is left; cheap
    async def succeeded(self, ids: Sequence[str]) -> int: ...  # how many have a result that says so
    async def once(
        self,
    ) -> None: ...  # one job from its submission to its result, heard of as soon as it can be
    async def recorded(
        self,
    ) -> bool: ...  # whether everything beside the queue has been written too


async def many(call: Callable[[], Awaitable[str]], count: int, at_once: int = 50) -> list[str]:
    """So many calls, some of them at once, each on its connection."""
    ids: list[str] = []
    for start in range(0, count, at_once):
        ids += await asyncio.gather(*(call() for _ in range(min(at_once, count - start))))
    return ids


class Arrivals:
    """Looks at results in order, each until it is there: about one look a job in all."""

    def __init__(self, present: Callable[[Sequence[str]], Awaitable[int]]) -> None:
        self._present = present
        self._ids: Sequence[str] = ()
        self._at = 0

    async def all(self, ids: Sequence[str]) -> bool:
        if ids is not self._ids:
            self._ids, self._at = ids, 0
        while portion := ids[self._at : self._at + 200]:
            if await self._present(portion) < len(portion):
                return False
            self._at += len(portion)
        return True


class Driver:
    def __init__(self, client: Client, worker: Sequence[str]) -> None:
        self.client, self.worker = client, worker
        self.ids: list[str] = []

    async def do(self, what: str, **given: Any) -> Any:
        """One command's answer."""
        command: Callable[..., Coroutine[Any, Any, Any]] = getattr(self, f"do_{what}")
        return await command(**given)

    async def do_worker(self) -> Sequence[str]:
        """The arguments with which Python becomes a worker."""
        return self.worker

    async def do_ready(self) -> int:
        return await self.client.ready()

    async def do_submit(self, count: int, sleep: float = 0.0) -> float:
        """Seconds that it took."""
        began = perf_counter()
        self.ids = list(await self.client.submit(count, sleep))
        return perf_counter() - began

    async def do_finished(self) -> float:
        """When all of the last submission had ended, on the clock that all processes share."""
        async with asyncio.timeout(PATIENCE):
            while not await self.client.finished(self.ids):  # noqa: ASYNC110 - another process cannot set an Event
                await asyncio.sleep(LOOK)
        return perf_counter()

    async def do_recorded(self) -> float:
        """The same for what is written beside the queue."""
        async with asyncio.timeout(PATIENCE):
            while not await self.client.recorded():  # noqa: ASYNC110 - likewise
                await asyncio.sleep(LOOK)
        return perf_counter()

    async def do_succeeded(self) -> int:
        return await self.client.succeeded(self.ids)

    async def do_latency(self, samples: int) -> list[float]:
        """Milliseconds of one job after the other."""
        times = []
        for _ in range(samples):
            began = perf_counter()
            await self.client.once()
            times.append(1000 * (perf_counter() - began))
        return times

    async def do_load(self, rate: float, seconds: float) -> int:
        """Submits evenly, whatever becomes of the jobs; how many."""
        began, sent = perf_counter(), 0
        while (now := perf_counter() - began) < seconds:
            due = int(rate * now) - sent
            if due > 0:
                await self.client.submit(due, 0.0)
                sent += due
            await asyncio.sleep(LOOK)
        return sent


async def _serve(driver: Driver) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        answer = await driver.do(**json.loads(line))
        print(json.dumps(answer), flush=True)


def serve(open_client: Callable[[], Awaitable[Client]], worker: Sequence[str]) -> None:
    """Until stdin ends. An error ends it at once, with its traceback on stderr."""

    async def main() -> None:
        await _serve(Driver(await open_client(), worker))

    asyncio.run(main())
