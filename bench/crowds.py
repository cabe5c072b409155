"""Item 6: what the queue's scripts cost beside many other things: queues, keys, reasons and so on.

Redis' own counters give the time in scripts, so that other load on the machine matters little.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msgspec.structs import replace
from redis.asyncio import Redis

from bench.figures import OURS, Figure
from bench.peers.tandem import new_job
from bench.processes import open_redis
from tandem_shared import catalogue
from tandem_shared.jobs.states import State
from tandem_shared.queue.connections import connect
from tandem_shared.queue.messages import Claimed, Finish, WorkerInfo
from tandem_shared.queue.queue import Queue

SIZES = (1, 10_000)
CLAIM_JOBS = 500
CALLS = 200  # that are measured of each kind


def entries(number: int, **limits: Any) -> list[catalogue.CatalogueEntry]:
    """The no-op, and further tasks with limits."""
    return [
        catalogue.CatalogueEntry(
            name=name, summary="", payload_schema={}, result_schema={}, defaults=defaults
        )
        for name, defaults in (
            ("bench.noop", {}),
            *((f"bench.other{index}", limits) for index in range(number)),
        )
    ]


class Claimer:
    """A worker that only this process plays."""

    def __init__(self, queue: Queue, name: str, queues: tuple[str, ...]) -> None:
        self._queue, self._name, self._queues = queue, name, queues
        self._calls, self._digest = 0, ""

    async def register(self, offered: list[catalogue.CatalogueEntry]) -> "Claimer":
        self._digest = catalogue.digest(offered)
        info = WorkerInfo(
            id=self._name, host="b", pid=1, queues=self._queues, concurrency=9, version="1",
            started_at=1e9,
        )  # fmt: skip
        await self._queue.register(info, offered)
        return self

    async def claim(self, slots: int = CLAIM_JOBS) -> list[Claimed]:
        self._calls += 1
        claim = await self._queue.claim(
            self._name, self._calls, slots=slots, tasks=self._digest, queues=self._queues
        )
        return claim.jobs


async def queues(queue: Queue, number: int) -> None:
    await queue.submit_many([replace(new_job(), queue=f"q{index}") for index in range(number)])


async def pauses(queue: Queue, number: int) -> None:
    for index in range(number):
        await queue.pause(f"q{index}", on=True)


async def keys(queue: Queue, number: int) -> None:
    """Each is held by a job, and another job waits for it."""
    jobs = [
        replace(new_job(), queue="other", concurrency_key=f"k{index % number}")
        for index in range(2 * number)
    ]
    await queue.submit_many(jobs)
    other = await Claimer(queue, "b-2", ("other",)).register(entries(0))
    while await other.claim():
        pass


async def limits(queue: Queue, number: int) -> None:
    await Claimer(queue, "b-2", ("other",)).register(entries(number, concurrency=5, rate="9/s"))


async def versions(queue: Queue, number: int) -> None:
    await Claimer(queue, "b-2", ("other",)).register(entries(number))


async def scheduled(queue: Queue, number: int) -> None:
    await queue.submit_many([replace(new_job(), delay=3600.0) for _ in range(number)])


async def due(queue: Queue, number: int) -> None:
    """Jobs of another queue whose time has come."""
    jobs = [replace(new_job(), queue="other", delay=0.001) for _ in range(number)]
    await queue.submit_many(jobs)


async def reasons(queue: Queue, number: int) -> None:
    """Tasks that no worker knows have jobs in the worker's own queue."""
    await queue.submit_many([replace(new_job(), task=f"u{index}") for index in range(number)])
    worker = await Claimer(queue, "b-2", ("default",)).register(entries(0))
    for _ in range(number // CLAIM_JOBS + 1):
        await worker.claim()


CROWDS: Mapping[str, Callable[[Queue, int], Awaitable[None]]] = {
    "queues with a job that are not served": queues,
    "paused queues": pauses,
    "held concurrency keys with a job that waits": keys,
    "tasks with limits": limits,
    "tasks and versions": versions,
    "scheduled jobs": scheduled,
    "due jobs of another queue": due,
    "reasons to wait": reasons,
}


async def _costs(redis: Redis, queue: Queue) -> dict[str, float]:
    """µs of Redis for an idle claim, and for a job from its submission to its end."""
    worker = await Claimer(queue, "b-1", ("default",)).register(entries(0))
    while found := await worker.claim():
        await queue.finish([_end(one) for one in found])
    idle = await _spent(redis, lambda: worker.claim(1))

    async def run() -> None:
        await queue.submit(new_job())
        await queue.finish([_end(one) for one in await worker.claim(1)])

    return {"an idle claim": idle, "a job": await _spent(redis, run)}


def _end(one: Claimed) -> Finish:
    return Finish(one.id, one.token, State.SUCCEEDED, "succeeded", b"null")


async def _spent(redis: Any, call: Callable[[], Awaitable[object]]) -> float:
    await call()
    await redis.config_resetstat()
    for _ in range(CALLS):
        await call()
    stats = await redis.info("commandstats")
    return float(stats["cmdstat_evalsha"]["usec"]) / CALLS


async def measure(_seconds: float) -> AsyncIterator[Figure]:
    """Each crowd at each size, in a Redis of its own; the last figures compare the sizes."""
    for name, prepare in CROWDS.items():
        found: list[dict[str, float]] = []
        for number in SIZES:
            with TemporaryDirectory(prefix="bench-") as directory:
                async with open_redis(Path(directory)) as (url, _):
                    redis = connect(url)
                    queue = Queue(redis, lease=600)  # without a heartbeat
                    await prepare(queue, number)
                    found.append(await _costs(redis, queue))
                    await queue.close()
                    await redis.aclose()
        small, large = found
        for what in small:
            yield Figure(f"{what}, 1 of: {name}", "µs", OURS, small[what])
            yield Figure(f"{what}, {SIZES[-1]:,} of: {name}", "×", OURS, large[what] / small[what])
