"""Redis comes back older than it was: a client of the queue repeats what it did last."""

from typing import Any

import pytest

from tandem_shared.errors import Unavailable
from tandem_shared.jobs.states import State
from tandem_shared.queue import recent
from tandem_shared.queue.connections import connect
from tandem_shared.queue.messages import Finish
from tandem_shared.queue.queue import Queue
from tandem_shared.queue.recent import Recent
from tests.conftest import eventually
from tests.shared.queue.model.shard import Shard, job


async def repeated(shard: Shard) -> None:
    """What happens once another process answers for Redis."""
    repeats = shard.queue.repeats
    repeats.start()
    await eventually(lambda: repeats._task is not None and repeats._task.done())


async def test_lost_submitter_are_repeated(shard: Shard) -> None:
    old = await shard.add()
    before = await shard.copy()
    one = job(idempotency_key="k")
    again = job(idempotency_key="k")
    ids = [*await shard.submit(one, again, job(delay=5)), await shard.add()]
    assert ids[0] == ids[1] == one.id
    await shard.roll_back(before)
    await repeated(shard)
    now = await shard.snapshot()
    assert set(now.jobs) == {old, *ids}
    assert {now.jobs[id]["state"] for id in ids} == {"scheduled"}  # a moment later
    known = await shard.snapshot()
    await repeated(shard)
    assert (await shard.snapshot()).jobs == known.jobs


async def test_lost_cancels_are_repeated_and_deleted_jobs_stay_away(shard: Shard) -> None:
    cancelled = await shard.add()
    before = await shard.copy()
    deleted = await shard.add()
    for id in (cancelled, deleted):
        await shard.queue.cancel(id)
    await shard.queue.forget(deleted)
    await shard.roll_back(before)
    await repeated(shard)
    now = await shard.snapshot()
    assert {id: record["state"] for id, record in now.jobs.items()} == {cancelled: "cancelled"}


async def test_a_full_queue_takes_back_what_it_had_accepted(shard: Shard) -> None:
    before = await shard.copy()
    shard.queue._submitter._backlog = 2
    ids = await shard.submit(job(), job(), job())
    assert len(ids) == 2
    await shard.roll_back(before)
    other = Shard(shard.redis)
    await other.add()
    await repeated(shard)
    assert set(ids) < set((await shard.snapshot()).jobs)


@pytest.mark.parametrize("to", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
@pytest.mark.parametrize("known", ["scheduled", "queued", "running", "lost", "again", "cancelled"])
async def test_an_accepted_end_holds(shard: Shard, to: State, known: str) -> None:
    id = await shard.add(delay=5, concurrency_key="k")
    worker, other = await shard.worker(), await shard.worker()
    copies = {"scheduled": await shard.copy()}
    await shard.wait(5)
    copies["queued"] = await shard.copy()
    claimed = await worker.take()
    copies["running"] = copies["lost"] = copies["again"] = copies["cancelled"] = await shard.copy()
    end = Finish(id, claimed.token, to, "failed", b"{}")
    assert await shard.queue.finish([end]) == ["ok"]
    await shard.roll_back(copies[known])
    await shard.turn(1)
    if known in ("lost", "again"):
        await shard.silence()
        await shard.silence()
    if known == "again":
        await other.take()
    if known == "cancelled":
        await shard.queue.cancel(id)
    for _ in range(2):
        assert await shard.queue.finish([end], accepted=True) == ["ok"]
        assert await shard.state(id) is to
    assert (await shard.get(id)).attempts[-1].number == int((await shard.get(id)).attempt)
    if known == "again":
        assert (await other.beat())[1] == [id]


async def test_a_beat_revives_only_attempts_that_redis_has_forgotten(shard: Shard) -> None:
    id = await shard.add(max_attempts=9)
    worker, other = await shard.worker(), await shard.worker()
    before = await shard.copy()
    claimed = await worker.take()
    await shard.roll_back(before)
    assert (await worker.beat())[1] == []
    assert await shard.state(id) is State.RUNNING
    assert await shard.field(id, "token") == claimed.token
    assert (await shard.snapshot()).zsets["leases"][id] == shard.ms + 1000 * shard.lease
    # Redis knows the attempt, and its end.
    await shard.silence()
    await shard.silence()
    assert await shard.state(id) is State.QUEUED
    assert (await worker.beat())[1] == [id]
    await shard.roll_back(before)
    later = await other.take()
    assert (await worker.beat())[1] == [id]
    assert await shard.field(id, "token") == later.token


async def test_a_beat_revives_no_attempt_beyond_the_limit_of_its_key(shard: Shard) -> None:
    first, second = await shard.submit(job(concurrency_key="k"), job(concurrency_key="k"))
    worker, other = await shard.worker(), await shard.worker()
    before = await shard.copy()
    await worker.claim(1)
    await shard.roll_back(before)
    await shard.queue.cancel(first)
    again = await other.claim()
    assert [one.id for one in again] == [second]
    assert (await worker.beat())[1] == [first]


async def test_another_server_is_noticed_before_it_is_used(redis_url: str) -> None:
    redis = connect(redis_url)
    queue = Queue(redis)
    try:
        await queue.ping()
        pool: Any = redis.connection_pool
        run_id = pool.run_id
        assert run_id._known == (await redis.info("server"))["run_id"].encode()
        seen: list[bool] = []
        run_id.on_change.append(lambda: seen.append(True))
        await redis.connection_pool.disconnect()
        await queue.ping()
        assert seen == []
        run_id._known = b"another"
        await redis.connection_pool.disconnect()
        with pytest.raises(Unavailable):
            await queue.ping()
        assert seen == [True]
        await queue.ping()
        assert seen == [True]
    finally:
        await queue.close()
        await redis.aclose()


async def test_kept_items_are_bounded_in_bytes_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: Recent[int] = Recent(100)
    for n in range(10):
        kept.add([n], 30)
    assert list(kept) == [7, 8, 9]
    monkeypatch.setattr(recent, "SAFE_SECONDS", -1.0)
    kept.frozen = True
    kept.confirm()
    assert list(kept) == [7, 8, 9]
    kept.frozen = False
    kept.confirm()
    assert list(kept) == []


async def test_a_user_without_info_is_served(redis_url: str) -> None:
    admin = connect(redis_url)
    await admin.acl_setuser(
        "plain", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@all"],
        commands=["-info"], channels=["*"],
    )  # fmt: skip
    redis = connect(redis_url.replace("unix://", "unix://plain:pw@"))
    try:
        assert await Queue(redis).ping() > 0
    finally:
        await redis.aclose()
        await admin.acl_deluser("plain")
        await admin.aclose()
