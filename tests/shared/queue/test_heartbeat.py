"""The heartbeat thread: leases are renewed while the event loop is blocked, but not forever."""

import asyncio
import contextlib
import time
from collections.abc import Iterator

import pytest
from redis.asyncio import Redis

from tandem_shared import catalogue
from tandem_shared.jobs.states import State
from tandem_shared.queue.heartbeat import Heartbeat
from tandem_shared.queue.messages import Held, WorkerInfo
from tandem_shared.queue.queue import Queue
from tandem_shared.queue.scripts import execute
from tests.conftest import eventually
from tests.shared.queue.model.shard import entry, job

FOREVER = float("inf")
DIGEST = catalogue.digest([entry("t")])


class Bench:
    """A worker on the real clock, and its heartbeat."""

    def __init__(self, redis: Redis, url: str, lease: float) -> None:
        self.redis, self.queue = redis, Queue(redis, lease=lease)
        self.lost: list[Held] = []
        self.cancelled: list[Held] = []
        self.unknown = 0
        self.heartbeat = Heartbeat(
            url,
            self.queue.prefix,
            {},
            worker="w",
            catalogue=DIGEST,
            lease=lease,
            keep=60.0,
            grace=1.0,
            started=lambda: 0,
            on_beat=self._on_beat,
            on_unknown=self._on_unknown,
        )

    def _on_beat(self, lost: list[Held], cancelled: list[Held]) -> None:
        self.lost += lost
        self.cancelled += cancelled

    def _on_unknown(self) -> None:
        self.unknown += 1

    async def register(self) -> None:
        await self.queue.register(
            WorkerInfo("w", "host", 1, ("default",), 10, "1", 0.0), [entry("t")]
        )

    async def hold(self, number: int = 1) -> list[str]:
        """Claims this many jobs."""
        await self.register()
        await self.queue.submit_many([job() for _ in range(number)])
        ids = []
        for call in range(1, 2 + number // 500):
            claim = await self.queue.claim("w", call, slots=500, tasks=DIGEST, queues=["default"])
            self.heartbeat.held |= {one.id: (one.token, FOREVER) for one in claim.jobs}
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
        made.heartbeat.stop()
        if made.heartbeat.is_alive():
            made.heartbeat.join(10)
        made.heartbeat._redis.close()


async def test_a_beat_leaves_when_the_worker_started_as_it_was(
    redis: Redis, redis_url: str
) -> None:
    with bench(redis, redis_url) as one:
        await one.hold()
        (before,) = await one.queue.workers()
        await one.queue.beat("w", DIGEST, [], started=1_700_000_000_000_000, zombies=3)
        (after,) = await one.queue.workers()
        assert after.started_at == before.started_at == 0.0
        assert after.zombies == 3


async def test_a_beat_renews_every_lease(redis: Redis, redis_url: str) -> None:
    with bench(redis, redis_url) as one:
        ids = await one.hold(1100)
        before = await one.leases()
        await eventually(lambda: time.time() * 1000 + 60_000 > max(before.values()) + 5)
        one.heartbeat.beat()
        after = await one.leases()
        assert set(after) == set(ids)
        assert all(after[id] > before[id] for id in ids)
        assert (one.lost, one.cancelled, one.unknown) == ([], [], 0)


async def test_a_blocked_event_loop_loses_no_lease(redis: Redis, redis_url: str) -> None:
    with bench(redis, redis_url, lease=1.0) as one:
        (id,) = await one.hold()
        one.heartbeat.start()
        end = (await one.leases())[id]
        while time.time() * 1000 < end + 500:  # well past the lease that the claim gave
            time.sleep(0.1)
        assert await one.queue.tick() == 0
        record = await one.queue.get(id)
        assert record is not None
        assert record.state is State.RUNNING


async def test_a_lease_is_renewed_only_until_its_time_is_over(redis: Redis, redis_url: str) -> None:
    with bench(redis, redis_url) as one:
        (id,) = await one.hold()
        token, _ = one.heartbeat.held[id]
        one.heartbeat.held[id] = (token, time.monotonic() - 1)
        before = await one.leases()
        await eventually(lambda: time.time() * 1000 + 60_000 > before[id] + 5)
        one.heartbeat.beat()
        assert await one.leases() == before


async def test_a_beat_reports_lost_and_cancelled_jobs(redis: Redis, redis_url: str) -> None:
    with bench(redis, redis_url) as one:
        ids = await one.hold(2)
        await one.queue.cancel(ids[0])
        one.heartbeat.held[ids[1]] = ("1.w", FOREVER)
        one.heartbeat.beat()
        assert (one.lost, one.cancelled) == (
            [(ids[1], one.heartbeat.held[ids[1]][0])],
            [(ids[0], one.heartbeat.held[ids[0]][0])],
        )


async def test_a_beat_reports_an_unknown_worker(redis: Redis, redis_url: str) -> None:
    with bench(redis, redis_url) as one:
        one.heartbeat.beat()
        assert one.unknown == 1
        await one.register()
        one.heartbeat.beat()
        assert one.unknown == 1
        one.heartbeat.draining = True
        one.heartbeat.beat()
        assert [worker.draining for worker in await one.queue.workers()] == [True]


async def test_the_thread_survives_faults(redis: Redis, redis_url: str) -> None:
    with bench(redis, redis_url, lease=1.0) as one:
        await one.hold()
        one.heartbeat.start()
        for command in (("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"), ("SCRIPT", "FLUSH")):
            await execute(redis, *command)
            before = (await one.queue.workers())[0].last_seen

            async def seen(before: float = before) -> bool:
                return (await one.queue.workers())[0].last_seen > before

            await eventually(seen)
        assert one.heartbeat.is_alive()


async def test_the_thread_stops(redis: Redis, redis_url: str) -> None:
    with bench(redis, redis_url, lease=1.0) as one:
        await one.hold()
        one.heartbeat.start()
        one.heartbeat.stop()
        await eventually(lambda: not one.heartbeat.is_alive())


@pytest.mark.parametrize("portion", [0, 1, 500, 501])
async def test_a_beat_covers_any_number_of_jobs(redis: Redis, redis_url: str, portion: int) -> None:
    with bench(redis, redis_url) as one:
        await one.register()
        one.heartbeat.held = {f"j{n}": ("1.w", FOREVER) for n in range(portion)}
        await asyncio.to_thread(one.heartbeat.beat)
        assert sorted(lost.id for lost in one.lost) == sorted(one.heartbeat.held)
