"""The heartbeat thread: it keeps what is held, whatever the event loop does, and no longer than it should."""

import asyncio
import contextlib
import time
from collections.abc import Iterator

import pytest
from redis.asyncio import Redis

from tandem_shared import catalogue
from tandem_shared.jobs.states import State
from tandem_shared.queue.heartbeat import Heartbeat
from tandem_shared.queue.messages import WorkerInfo
from tandem_shared.queue.queue import Queue
from tandem_shared.queue.scripts import execute
from tests.conftest import eventually
from tests.shared.queue.model.shard import entry, job

FOREVER = float("inf")
DIGEST = catalogue.digest([entry("t")])


class Bench:
    """A worker on the real clock, and its heart."""

    def __init__(self, redis: Redis, url: str, lease: float) -> None:
        self.redis, self.queue = redis, Queue(redis, lease=lease)
        self.lost: list[str] = []
        self.cancelled: list[str] = []
        self.unknown = 0
        self.heart = Heartbeat(
            url,
            self.queue.prefix,
            worker="w",
            catalogue=DIGEST,
            lease=lease,
            on_beat=self._beaten,
            on_unknown=self._forgotten,
        )

    def _beaten(self, lost: list[str], cancelled: list[str]) -> None:
        self.lost += lost
        self.cancelled += cancelled

    def _forgotten(self) -> None:
        self.unknown += 1

    async def register(self) -> None:
        await self.queue.register(
            WorkerInfo("w", "host", 1, ("default",), 10, "1", 0.0), [entry("t")]
        )

    async def hold(self, number: int = 1) -> list[str]:
        """So many running jobs."""
        await self.register()
        await self.queue.submit_many([job() for _ in range(number)])
        ids = []
        for call in range(1, 2 + number // 500):
            claim = await self.queue.claim("w", call, slots=500, tasks=DIGEST, queues=["default"])
            self.heart.held |= {one.id: (one.token, FOREVER) for one in claim.jobs}
            ids += [one.id for one in claim.jobs]
        assert len(ids) == number
        return ids

    async def leases(self) -> dict[str, float]:
        rows = await self.redis.zrange(f"{self.queue.prefix}leases", 0, -1, withscores=True)
        return {id.decode(): end for id, end in rows}


@contextlib.contextmanager
def bench(redis: Redis, url: str, lease: float = 60.0) -> Iterator[Bench]:
    made = Bench(redis, url, lease)
    try:
        yield made
    finally:
        made.heart.stop()
        if made.heart.is_alive():
            made.heart.join(10)
        made.heart._redis.close()


async def test_a_beat_renews_every_lease(redis: Redis, redis_url: str) -> None:
    with bench(redis, redis_url) as one:
        ids = await one.hold(1100)
        before = await one.leases()
        await eventually(lambda: time.time() * 1000 + 60_000 > max(before.values()) + 5)
        one.heart.beat()
        after = await one.leases()
        assert set(after) == set(ids)
        assert all(after[id] > before[id] for id in ids)
        assert (one.lost, one.cancelled, one.unknown) == ([], [], 0)


async def test_an_event_loop_that_is_blocked_loses_nothing(redis: Redis, redis_url: str) -> None:
    with bench(redis, redis_url, lease=1.0) as one:
        (id,) = await one.hold()
        one.heart.start()
        end = (await one.leases())[id]
        while time.time() * 1000 < end + 500:  # well past the lease that the claim gave
            time.sleep(0.1)
        assert await one.queue.tick() == 0
        record = await one.queue.get(id)
        assert record is not None
        assert record.state is State.RUNNING


async def test_a_job_is_beaten_for_until_its_time_is_over(redis: Redis, redis_url: str) -> None:
    with bench(redis, redis_url) as one:
        (id,) = await one.hold()
        token, _ = one.heart.held[id]
        one.heart.held[id] = (token, time.monotonic() - 1)
        before = await one.leases()
        await eventually(lambda: time.time() * 1000 + 60_000 > before[id] + 5)
        one.heart.beat()
        assert await one.leases() == before


async def test_it_tells_what_is_lost_and_what_is_to_be_cancelled(
    redis: Redis, redis_url: str
) -> None:
    with bench(redis, redis_url) as one:
        ids = await one.hold(2)
        await one.queue.cancel(ids[0])
        one.heart.held[ids[1]] = ("1.w", FOREVER)
        one.heart.beat()
        assert (one.lost, one.cancelled) == ([ids[1]], [ids[0]])


async def test_it_tells_when_redis_does_not_know_the_worker(redis: Redis, redis_url: str) -> None:
    with bench(redis, redis_url) as one:
        one.heart.beat()
        assert one.unknown == 1
        await one.register()
        one.heart.beat()
        assert one.unknown == 1
        one.heart.draining = True
        one.heart.beat()
        assert [worker.draining for worker in await one.queue.workers()] == [True]


async def test_it_goes_on_after_a_fault(redis: Redis, redis_url: str) -> None:
    with bench(redis, redis_url, lease=1.0) as one:
        await one.hold()
        one.heart.start()
        for command in (("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"), ("SCRIPT", "FLUSH")):
            await execute(redis, *command)
            before = (await one.queue.workers())[0].last_seen

            async def seen(before: float = before) -> bool:
                return (await one.queue.workers())[0].last_seen > before

            await eventually(seen)
        assert one.heart.is_alive()


async def test_it_stops(redis: Redis, redis_url: str) -> None:
    with bench(redis, redis_url, lease=1.0) as one:
        await one.hold()
        one.heart.start()
        one.heart.stop()
        await eventually(lambda: not one.heart.is_alive())


@pytest.mark.parametrize("portion", [0, 1, 500, 501])
async def test_any_number_of_jobs_is_beaten_for(redis: Redis, redis_url: str, portion: int) -> None:
    with bench(redis, redis_url) as one:
        await one.register()
        one.heart.held = {f"j{n}": ("1.w", FOREVER) for n in range(portion)}
        await asyncio.to_thread(one.heart.beat)
        assert sorted(one.lost) == sorted(one.heart.held)
