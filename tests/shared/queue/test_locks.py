"""Locks: one holder, the others in order; held for as long as the attempt runs, whatever becomes of it."""

import asyncio

import pytest

from tandem_shared.jobs.states import State
from tandem_shared.queue.locks import Acquisition
from tandem_shared.queue.messages import Claimed
from tests.shared.queue.model.shard import Shard, Worker


async def start(shard: Shard, worker: Worker | None = None, **given: str) -> Claimed:
    """A job that runs."""
    await shard.add(**given)
    return await (worker or await shard.worker()).take()


def one(claimed: Claimed, number: int = 1, name: str = "door") -> Acquisition:
    return Acquisition(claimed.id, claimed.token, number, name)


async def fence(shard: Shard, acquisition: Acquisition) -> int | None:
    """The fence under which it holds, None while it waits."""
    asked = await shard.queue.locks.acquire(acquisition)
    assert asked is not None
    return asked.fence


async def test_one_holds_and_the_others_follow_in_order(shard: Shard) -> None:
    jobs = [one(await start(shard)) for _ in range(4)]
    fences = []
    assert await fence(shard, jobs[0])
    for job in jobs[1:]:
        await shard.turn(0.001)
        assert await fence(shard, job) is None
    assert await fence(shard, jobs[1]) is None  # to ask again costs no place
    for number, job in enumerate(jobs):
        assert [await fence(shard, later) for later in jobs[number + 1 :]] == [None] * (3 - number)
        fences.append(await fence(shard, job) or 0)
        assert await fence(shard, job) == fences[-1]
        assert [await shard.queue.locks.release(job) for _ in range(2)] == [True, True]
    assert fences == sorted(set(fences))
    left = await shard.snapshot()
    assert not [key for key in left.ttl if key.startswith(("lock:", "waits:"))]


async def test_fences_grow_though_the_clock_steps_back_and_redis_forgets(shard: Shard) -> None:
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


async def test_names_and_tenants_do_not_meet(shard: Shard) -> None:
    jobs = [
        one(await start(shard)),
        one(await start(shard), name="gate"),
        one(await start(shard, tenant="other")),
    ]
    assert None not in [await fence(shard, job) for job in jobs]


@pytest.mark.parametrize(
    "to", [State.SUCCEEDED, State.FAILED, State.CANCELLED, State.RETRYING, State.QUEUED]
)
async def test_the_end_of_an_attempt_frees_what_it_held_and_waited_for(
    shard: Shard, to: State
) -> None:
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


async def test_a_lease_that_ends_frees_the_lock_with_nobody_else_about(shard: Shard) -> None:
    dead, alive = await shard.worker(), await shard.worker()
    holder, waiter = await start(shard, dead), await start(shard, alive)
    first = await fence(shard, one(holder)) or 0
    asked = await shard.queue.locks.acquire(one(waiter))
    assert asked == (None, shard.lease)  # by then it knows more
    for _ in range(10):
        await shard.turn(1)
        await alive.beat()
        assert await shard.state(holder.id) is State.RUNNING
    assert (await fence(shard, one(waiter)) or 0) > first
    assert await shard.state(holder.id) is State.QUEUED
    assert await shard.queue.locks.acquire(one(holder)) is None


async def test_a_lock_is_held_for_as_long_as_the_lease_is_renewed(shard: Shard) -> None:
    worker, other = await shard.worker(), await shard.worker()
    holder, waiter = await start(shard, worker), await start(shard, other)
    assert await fence(shard, one(holder))
    for _ in range(50):
        await shard.wait(1)
        await worker.beat()
        await other.beat()
        assert await fence(shard, one(waiter)) is None


async def test_a_redis_that_was_away_costs_nobody_a_lock(shard: Shard) -> None:
    worker, other = await shard.worker(), await shard.worker()
    holder, waiter = await start(shard, worker), await start(shard, other)
    held = await fence(shard, one(holder))
    await shard.turn(100)
    asked = await shard.queue.locks.acquire(one(waiter))
    assert asked == (None, 0.0)
    await worker.beat()
    await other.beat()
    assert await fence(shard, one(holder)) == held


async def test_acquisitions_of_one_attempt_wait_for_each_other(shard: Shard) -> None:
    worker = await shard.worker()
    job = await start(shard, worker)
    assert await fence(shard, one(job, 1))
    assert await fence(shard, one(job, 2)) is None
    await shard.turn(shard.lease + 1)  # its own lease is nothing to end
    await shard.queue.beat(worker.id, worker.digest, [])
    await shard.turn(shard.lease + 1)
    assert await fence(shard, one(job, 2)) is None
    await shard.queue.locks.release(one(job, 1))
    assert await fence(shard, one(job, 2))


async def test_a_call_that_arrives_after_its_acquisition_was_given_up_takes_nothing(
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


async def test_who_waits_is_told(shard: Shard) -> None:
    worker = await shard.worker()
    holder, waiter = await start(shard, worker), await start(shard, worker)
    assert await fence(shard, one(holder))
    assert await fence(shard, one(waiter)) is None
    async with shard.queue.locks.subscribe(one(waiter)) as change:
        await change.wait()  # for the subscription
        told = asyncio.create_task(change.wait())
        await shard.queue.locks.release(one(holder))
        async with asyncio.timeout(3):  # well before a watch looks again by itself
            await told
        assert await fence(shard, one(waiter))
