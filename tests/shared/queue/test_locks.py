"""Locks: one holder, the others in order; a lock lasts as long as the holder's attempt."""

import asyncio

import pytest

from tandem_shared.jobs.states import State
from tandem_shared.queue.locks import Acquisition
from tandem_shared.queue.messages import Claimed
from tests.shared.queue.model.shard import Shard, Worker


async def start(shard: Shard, worker: Worker | None = None, **given: str) -> Claimed:
    """A running job."""
    await shard.add(**given)
    return await (worker or await shard.worker()).take()


def one(claimed: Claimed, number: int = 1, name: str = "door") -> Acquisition:
    return Acquisition(claimed.id, claimed.token, number, name)


async def fence(shard: Shard, acquisition: Acquisition) -> int | None:
    """The fence under which it holds the lock, None while it waits."""
    reply = await shard.queue.locks.acquire(acquisition)
    assert reply is not None
    return reply.fence


async def fail_over(shard: Shard) -> None:
    """Redis is another process than the one that gave fences before."""
    clock = f"{shard.queue.prefix}clock"
    _, _, rest = (await shard.redis.hget(clock, "epoch")).partition(b" ")
    await shard.redis.hset(clock, "epoch", b"another " + rest)


async def test_a_lock_is_handed_over_in_order(shard: Shard) -> None:
    jobs = [one(await start(shard)) for _ in range(4)]
    fences = []
    assert await fence(shard, jobs[0])
    for job in jobs[1:]:
        await shard.turn(0.001)
        assert await fence(shard, job) is None
    assert await fence(shard, jobs[1]) is None  # asking again keeps the place
    for number, job in enumerate(jobs):
        assert [await fence(shard, later) for later in jobs[number + 1 :]] == [None] * (3 - number)
        fences.append(await fence(shard, job) or 0)
        assert await fence(shard, job) == fences[-1]
        assert [await shard.queue.locks.release(job) for _ in range(2)] == [True, True]
    assert fences == sorted(set(fences))
    left = await shard.snapshot()
    assert not [key for key in left.ttl if key.startswith(("lock:", "waits:"))]


async def test_fences_grow_across_clock_steps_and_lost_data(shard: Shard) -> None:
    job = one(await start(shard))
    first = await fence(shard, job) or 0
    await shard.queue.locks.release(job)
    await shard.turn(-1)
    again = one(await start(shard), number=2)
    second = await fence(shard, again) or 0
    assert second > first
    await shard.turn(2)
    await shard.redis.delete(f"{shard.queue.prefix}lock:default:door")
    await shard.redis.hdel(f"{shard.queue.prefix}clock", "fence")
    assert (await fence(shard, one(await start(shard))) or 0) > second
    await shard.redis.flushall()
    await shard.turn(0)


async def test_a_holder_that_redis_has_forgotten_is_told_so(shard: Shard) -> None:
    worker = await shard.worker()
    first, second = await start(shard, worker), await start(shard, worker)
    before = await shard.copy()
    held = one(first)._replace(fence=await fence(shard, one(first)) or 0)
    assert await shard.queue.locks.acquire(held) == (held.fence, 0.0)
    await shard.roll_back(before)
    await fail_over(shard)
    later = one(second)._replace(fence=await fence(shard, one(second)) or 0)
    assert later.fence > held.fence
    assert await shard.queue.locks.acquire(held) is None
    assert await shard.queue.locks.release(held) is False
    assert await shard.queue.locks.acquire(later) == (later.fence, 0.0)
    assert [await shard.queue.locks.release(later) for _ in range(2)] == [True, True]
    assert await shard.queue.locks.acquire(later) is None
    assert (
        await shard.queue.locks.release(one(first, 2)) is True
    )  # it was cancelled while it waited


async def test_fences_grow_over_a_failover_to_a_replica_with_a_slow_clock(shard: Shard) -> None:
    worker = await shard.worker()
    known = one(await start(shard, worker))
    known = known._replace(fence=await fence(shard, known) or 0)
    before = await shard.copy()
    forgotten = one(await start(shard, worker), name="gate")
    await shard.turn(20)
    forgotten = forgotten._replace(fence=await fence(shard, forgotten) or 0)
    await shard.roll_back(before)
    await shard.turn(-60)
    await fail_over(shard)
    later = await fence(shard, one(await start(shard, worker), name="gate"))
    assert (later or 0) > forgotten.fence > known.fence
    assert await shard.queue.locks.release(forgotten) is False
    assert [await shard.queue.locks.release(known) for _ in range(2)] == [True, True]


async def test_locks_are_per_name_and_tenant(shard: Shard) -> None:
    jobs = [
        one(await start(shard)),
        one(await start(shard), name="gate"),
        one(await start(shard, tenant="other")),
    ]
    assert None not in [await fence(shard, job) for job in jobs]


@pytest.mark.parametrize(
    "to", [State.SUCCEEDED, State.FAILED, State.CANCELLED, State.RETRYING, State.QUEUED]
)
async def test_the_end_of_an_attempt_releases_its_locks_and_places(shard: Shard, to: State) -> None:
    worker, other = await shard.worker(), await shard.worker()
    holder, second = await start(shard, worker), await start(shard, other)
    third = await start(shard, other)
    assert await fence(shard, one(holder, 1))
    assert await fence(shard, one(second, 1, "gate"))
    for acquisition in (
        one(holder, 2, "gate"),
        one(second, 2),
        one(third, 1, "gate"),
        one(third, 2),
    ):
        await shard.turn(0.001)
        assert await fence(shard, acquisition) is None
    assert await worker.end(holder, to) == "ok"
    assert await shard.queue.locks.acquire(one(holder)) is None
    assert await shard.queue.locks.release(one(holder)) is False
    assert await fence(shard, one(second, 2))
    assert await fence(shard, one(third, 2)) is None
    assert await other.end(second) == "ok"
    assert await fence(shard, one(third, 1, "gate"))
    assert await fence(shard, one(third, 2))


async def test_an_ended_lease_frees_the_lock_without_a_tick(shard: Shard) -> None:
    dead, alive = await shard.worker(), await shard.worker()
    holder, waiter = await start(shard, dead), await start(shard, alive)
    first = await fence(shard, one(holder)) or 0
    reply = await shard.queue.locks.acquire(one(waiter))
    assert reply == (None, shard.lease)  # by then the lease is renewed or ended
    for _ in range(10):
        await shard.turn(1)
        await alive.beat()
        assert await shard.state(holder.id) is State.RUNNING
    assert (await fence(shard, one(waiter)) or 0) > first
    assert await shard.state(holder.id) is State.QUEUED
    assert await shard.queue.locks.acquire(one(holder)) is None


async def test_a_lock_is_held_while_the_lease_is_renewed(shard: Shard) -> None:
    worker, other = await shard.worker(), await shard.worker()
    holder, waiter = await start(shard, worker), await start(shard, other)
    assert await fence(shard, one(holder))
    for _ in range(50):
        await shard.wait(1)
        await worker.beat()
        await other.beat()
        assert await fence(shard, one(waiter)) is None


async def test_an_outage_of_redis_costs_no_lock(shard: Shard) -> None:
    worker, other = await shard.worker(), await shard.worker()
    holder, waiter = await start(shard, worker), await start(shard, other)
    held = await fence(shard, one(holder))
    await shard.turn(100)
    reply = await shard.queue.locks.acquire(one(waiter))
    assert reply == (None, 0.0)
    await worker.beat()
    await other.beat()
    assert await fence(shard, one(holder)) == held


async def test_acquisitions_of_one_attempt_wait_for_each_other(shard: Shard) -> None:
    worker = await shard.worker()
    job = await start(shard, worker)
    assert await fence(shard, one(job, 1))
    assert await fence(shard, one(job, 2)) is None
    await shard.turn(shard.lease + 1)  # an attempt does not settle its own lease
    await shard.queue.beat(worker.id, worker.digest, [])
    await shard.turn(shard.lease + 1)
    assert await fence(shard, one(job, 2)) is None
    await shard.queue.locks.release(one(job, 1))
    assert await fence(shard, one(job, 2))


async def test_a_lock_call_after_its_release_takes_nothing(
    shard: Shard,
) -> None:
    worker = await shard.worker()
    job, other = await start(shard, worker), await start(shard, worker)
    for number in (1, 2):
        assert await shard.queue.locks.release(one(job, number)) is True
        assert await fence(shard, one(job, number)) is None
    assert await fence(shard, one(other))
    assert await worker.end(job) == "ok"
    assert "lk" not in (await shard.snapshot()).jobs[job.id]


async def test_a_waiting_acquisition_is_notified(shard: Shard) -> None:
    worker = await shard.worker()
    holder, waiter = await start(shard, worker), await start(shard, worker)
    assert await fence(shard, one(holder))
    assert await fence(shard, one(waiter)) is None
    async with shard.queue.locks.subscribe(one(waiter)) as change:
        await change.wait()  # for the subscription
        notified = asyncio.create_task(change.wait())
        await shard.queue.locks.release(one(holder))
        async with asyncio.timeout(3):  # well before the next poll
            await notified
        assert await fence(shard, one(waiter))
