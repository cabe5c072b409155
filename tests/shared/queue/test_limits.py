"""A task's limits across workers: how many attempts run at once, how many start in a period."""

from typing import Any

import pytest

from tandem_shared.catalogue import Limits, parse_limits
from tandem_shared.jobs.states import State
from tests.shared.queue.model.shard import Shard, job


async def many(shard: Shard, number: int, **given: Any) -> list[str]:
    ids = []
    for _ in range(number):
        await shard.turn(0.001)
        ids.append(await shard.add(max_attempts=9, **given))
    return ids


@pytest.mark.parametrize(
    ("rate", "every", "burst"),
    [
        ("1/s", 1_000_000, 1),
        ("100/m", 600_000, 1),
        ("5/10s", 2_000_000, 1),
        ("7/h", 514_285_715, 1),
        ("40/s", 25_000, 4),
        ("1/1.5s", 1_500_000, 1),
        ("10000/s", 100, 1000),
    ],
)
def test_a_rate_becomes_an_interval_and_a_burst(rate: str, every: int, burst: int) -> None:
    assert parse_limits(None, rate) == Limits(0, every, burst)


async def test_the_concurrency_limit_holds_across_workers(shard: Shard) -> None:
    one, other = [await shard.worker(concurrency=2) for _ in range(2)]
    ids = await many(shard, 5)
    (first,) = await one.claim(slots=1)
    (second,) = await other.claim()
    assert [first.id, second.id] == ids[:2]
    assert await one.claim() == []
    assert [await shard.state(id) for id in ids[2:]] == [State.WAITING] * 3
    await one.end(first)
    assert [claimed.id for claimed in await other.claim()] == ids[2:3]
    await other.end(second)
    assert [claimed.id for claimed in await one.claim()] == ids[3:4]


@pytest.mark.parametrize("how", ["succeeded", "failed", "retrying", "queued", "cancelled", "lost"])
async def test_every_end_of_an_attempt_frees_its_slot(shard: Shard, how: str) -> None:
    worker = await shard.worker(concurrency=1)
    ids = await many(shard, 2)
    claimed = await worker.take()
    await worker.end_as(claimed, how)
    (again,) = await worker.claim()
    assert again.id == (ids[0] if how in ("queued", "lost") else ids[1])
    assert (await shard.snapshot()).values["slots:task:t"] == [f"{again.id}:{again.token}"]


async def test_a_rate_spreads_the_starts(shard: Shard) -> None:
    worker = await shard.worker(rate="100/m")
    ids = await many(shard, 4)
    starts = []
    while (claim := await worker.call()).next_due is not None:
        starts += [(one.id, shard.ms) for one in claim.jobs]
        await shard.turn(claim.next_due)
    starts += [(one.id, shard.ms) for one in claim.jobs]
    assert [id for id, _ in starts] == ids
    assert [then - starts[0][1] for _, then in starts] == [0, 600, 1200, 1800]


async def test_a_fast_rate_has_a_burst(shard: Shard) -> None:
    worker = await shard.worker(rate="50/s")
    await many(shard, 20)
    assert len(await worker.claim()) == 5
    assert len(await worker.claim()) == 0
    # Not 0.02: a burst saves a claim for every single start.
    assert (await worker.call()).next_due == 0.05
    await shard.turn(0.05)
    await shard.queue.tick()
    assert (await shard.snapshot()).counts == {
        "default running": 5,
        "default queued": 2,
        "default waiting": 13,
    }
    assert len(await worker.claim()) == 2
    await shard.turn(5)
    assert len(await worker.claim()) == 5


async def test_only_starts_use_up_the_rate(shard: Shard) -> None:
    worker = await shard.worker(rate="1/m")
    ids = await many(shard, 3)
    first = await worker.take()
    for _ in range(20):
        assert await worker.claim() == []
        await shard.wait(1)
        await worker.beat()
    await shard.queue.cancel(ids[1])
    await shard.wait(20)
    await worker.beat()
    assert await worker.claim() == []
    await worker.end(first, State.QUEUED)  # it had started, so it counts although handed back
    await shard.wait(19)
    assert await worker.claim() == []
    await shard.wait(1)
    assert [one.id for one in await worker.claim()] == ids[:1]


async def test_a_limited_backlog_is_parked_once(shard: Shard) -> None:
    worker = await shard.worker(rate="1/m")
    ids = await many(shard, 60)
    await worker.take()
    assert [len((await worker.call(slots=5)).jobs) for _ in range(3)] == [0, 0, 0]
    assert [await shard.state(id) for id in ids].count(State.WAITING) == 59
    before = await shard.snapshot()
    claim = await worker.call(slots=5)
    after = await shard.snapshot()
    assert (claim.more, before.jobs, before.zsets) == (False, after.jobs, after.zsets)
    await shard.wait(60)
    again = await shard.snapshot()
    # The lost one, and the next.
    assert [id for id in ids if again.jobs[id] != after.jobs[id]] == ids[:2]


async def test_jobs_at_their_limit_do_not_block_other_tasks(shard: Shard) -> None:
    await many(shard, 30, priority="high")
    worker = await shard.worker({"t": 1, "u": 1}, concurrency=1)
    other = await shard.add(task="u", priority="low")
    started = [(await worker.claim(slots=5)) for _ in range(3)]
    assert other in [one.id for claimed in started for one in claimed]


async def test_parked_jobs_keep_their_priorities(shard: Shard) -> None:
    low, high = await many(shard, 3, priority="low"), await many(shard, 3, priority="high")
    worker = await shard.worker(concurrency=1)
    order = []
    for _ in range(6):
        claimed = await worker.take()
        order.append(claimed.id)
        await worker.end(claimed)
    assert order == high + low


async def test_a_freed_slot_of_a_limit_rings(shard: Shard) -> None:
    worker, other = (
        await shard.worker(queues=["a"], concurrency=1),
        await shard.worker(queues=["b"], concurrency=1),
    )
    await shard.submit(*(job(queue=queue) for queue in ("a", "b")))
    claimed = await worker.take()
    assert await other.claim() == []
    await shard.redis.delete(f"{shard.queue.prefix}bell:b")
    await worker.end(claimed)
    assert (await shard.snapshot()).values["bell:b"] == ["1"]
    assert len(await other.claim()) == 1


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_a_parked_job_can_end_cleanly(shard: Shard, how: str) -> None:
    worker = await shard.worker(concurrency=1)
    ids = await many(shard, 3, expires_in=5)
    claimed = await worker.take()
    assert await worker.claim() == []
    if how == "cancelled":
        await shard.queue.cancel(ids[1])
        await worker.end(claimed)
        assert [one.id for one in await worker.claim()] == ids[2:]
    else:
        await shard.wait(6)
        assert [await shard.state(id) for id in ids[1:]] == [State.FAILED] * 2
        later = await shard.add()
        await worker.end(claimed)
        assert (await worker.take()).id == later


@pytest.mark.parametrize("how", ["cancelled", "expired", "keyed", "unknown"])
async def test_a_woken_job_that_cannot_start_wakes_the_next(shard: Shard, how: str) -> None:
    worker = await shard.worker({"t": 2}, concurrency=1)
    first = await shard.add()
    called = await shard.add(
        expires_in=5 if how == "expired" else None,
        concurrency_key="k" if how == "keyed" else None,
        version=2 if how == "unknown" else 1,
    )
    last = await shard.add()
    claimed = await worker.take()
    assert claimed.id == first
    assert await worker.claim() == []
    if how == "keyed":
        holder = await shard.add(task="u", concurrency_key="k")
        assert [one.id for one in await (await shard.worker({"u": 1})).claim()] == [holder]
    await worker.end(claimed)
    states = [await shard.state(called), await shard.state(last)]
    assert states == (
        [State.WAITING, State.QUEUED] if how == "keyed" else [State.QUEUED, State.WAITING]
    )
    if how == "cancelled":
        await shard.queue.cancel(called)
    elif how == "expired":
        await shard.wait(5)
    # For `unknown` an older worker claims, whose limits are ignored.
    asker = await shard.worker({"t": 1}) if how == "unknown" else worker
    assert [one.id for _ in range(2) for one in await asker.claim()] == [last]


async def test_a_concurrency_key_and_a_rate_work_together(shard: Shard) -> None:
    """A key's slot goes to a task that may start, and back to the limited job afterwards."""
    worker = await shard.worker({"t": 1, "u": 1}, rate="1/s")
    first, second = await many(shard, 2, concurrency_key="k")
    third = await shard.add(task="u", concurrency_key="k")
    claimed = await worker.take()
    assert claimed.id == first
    assert await worker.claim() == []
    await worker.end(claimed)  # the second may not start: the third is brought back
    other = await worker.take()
    assert other.id == third
    assert await shard.place(second) == ["park:limit:default:normal:task:t"]
    await shard.turn(1)
    assert await worker.claim() == []
    assert await shard.place(second) == ["park:limit:default:normal:key:default:k"]
    await worker.end(other)
    assert (await worker.take()).id == second


async def test_jobs_of_one_limited_task_do_not_move_between_key_and_limit(shard: Shard) -> None:
    worker = await shard.worker(rate="1/s")
    ids = await many(shard, 40, concurrency_key="k")
    claimed = await worker.take()
    while (await worker.call()).more:
        pass
    await worker.end(claimed)
    for _ in range(5):
        await worker.claim()
    places = [await shard.place(id) for id in ids[1:]]
    assert (
        places
        == [["park:limit:default:normal:task:t"]]
        + [["park:limit:default:normal:key:default:k"]] * 38
    )


async def test_cancelling_a_job_woken_by_its_key_wakes_the_next(shard: Shard) -> None:
    worker = await shard.worker(rate="1/m")
    _, second, third = await many(shard, 3, concurrency_key="k")
    claimed = await worker.take()
    await worker.claim()
    await worker.end(claimed)
    await worker.claim()
    assert await shard.place(second) == ["park:limit:default:normal:task:t"]
    await shard.queue.cancel(second)
    assert await shard.place(third) == ["park:limit:default:normal:task:t"]


async def test_a_raised_limit_wakes_parked_jobs(shard: Shard) -> None:
    worker = await shard.worker(concurrency=1)
    ids = await many(shard, 5)
    await worker.take()
    await worker.claim()
    await shard.redis.delete(f"{shard.queue.prefix}bell:default")
    newer = await shard.worker(concurrency=3)
    assert (await shard.snapshot()).values["bell:default"] == ["1"]
    assert [one.id for one in await newer.claim()] == ids[1:3]
    assert [one.id for one in await (await shard.worker()).claim()] == ids[3:]
    left = await shard.snapshot()
    assert not [
        key for key in (*left.zsets, *left.values) if key.startswith(("park", "limit", "gates"))
    ]


async def test_a_raised_rate_takes_effect_at_once(shard: Shard) -> None:
    slow = await shard.worker(rate="1/h")
    await many(shard, 3)
    await slow.take()
    assert await slow.claim() == []
    fast = await shard.worker(rate="1/s")
    await shard.turn(1)
    assert len(await fast.claim()) == 1


async def test_a_lowered_limit_waits_for_running_attempts(shard: Shard) -> None:
    wide = await shard.worker(concurrency=3)
    await many(shard, 5)
    running = await wide.claim()
    assert len(running) == 3
    narrow = await shard.worker(concurrency=1)
    for one in running[:2]:
        await wide.end(one)
        assert await narrow.claim() == []
    await wide.end(running[2])
    assert len(await narrow.claim()) == 1


async def test_limits_of_an_older_version_are_ignored(shard: Shard) -> None:
    await shard.worker({"t": 2}, concurrency=2)
    old = await shard.worker({"t": 1}, concurrency=1)
    await many(shard, 3)
    assert len(await old.claim()) == 2


async def test_a_clock_step_back_does_not_stop_a_rate(shard: Shard) -> None:
    worker = await shard.worker(rate="1/s")
    await many(shard, 3)
    await worker.take()
    assert await worker.claim() == []
    await shard.turn(-3600)
    await shard.queue.tick()
    started = 0
    for _ in range(3):
        await shard.wait(1)
        started += len(await worker.claim())
    assert started >= 1


async def test_another_job_is_woken_if_the_first_does_not_start(shard: Shard) -> None:
    live, dead = [await shard.worker(queues=[queue], concurrency=1) for queue in ("live", "dead")]
    first = await shard.add(queue="live", priority="high")
    nobodys = await shard.add(queue="dead", priority="high")
    last = await shard.add(queue="live")
    claimed = await live.take()
    assert (claimed.id, await dead.claim(), await live.claim()) == (first, [], [])
    await live.end(claimed)
    assert await shard.state(nobodys) is State.QUEUED
    assert await live.claim() == []
    await shard.wait(1)
    assert (await live.take()).id == last


async def test_the_newest_submission_sets_the_limit_of_a_key(shard: Shard) -> None:
    worker = await shard.worker()
    narrow = await many(shard, 3, concurrency_key="k", concurrency_limit=1)
    assert [one.id for one in await worker.claim()] == narrow[:1]
    await shard.turn(0.001)
    wide = await shard.add(concurrency_key="k", concurrency_limit=3)
    started = [one.id for _ in range(3) for one in await worker.claim()]
    assert sorted(started) == sorted([wide, narrow[1]])  # three run, the last waits
    assert await shard.state(narrow[2]) is State.WAITING


async def test_a_lowered_limit_of_a_key_takes_effect(shard: Shard) -> None:
    worker = await shard.worker()
    await many(shard, 3, concurrency_key="k", concurrency_limit=3)
    running = await worker.claim()
    assert len(running) == 3
    later = await many(shard, 2, concurrency_key="k", concurrency_limit=1)
    for one in running:
        assert await worker.claim() == []
        await worker.end(one)
    for id in later:
        claimed = await worker.take()
        assert claimed.id == id
        await worker.end(claimed)


async def test_jobs_of_a_key_start_in_their_order(shard: Shard) -> None:
    worker = await shard.worker()
    ids, order = await many(shard, 20, concurrency_key="k", concurrency_limit=2), []
    while claimed := await worker.claim(slots=3):
        order += [one.id for one in claimed]
        await shard.turn(0.001)
        await shard.add(concurrency_key="k", concurrency_limit=2) if len(ids) < 30 else None
        ids += [""] if len(ids) < 30 else []
        for one in claimed:
            await worker.end(one)
    assert order[:20] == ids[:20]
