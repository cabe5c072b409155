"""Losing workers, losing Redis for a while, and a clock that jumps."""

import pytest

from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Finish
from tests.shared.queue.model.shard import Shard, Worker, job


async def test_an_ended_lease_returns_the_job_to_its_place(shard: Shard) -> None:
    id = await shard.add()
    due = (await shard.get(id)).due
    worker = await shard.worker()
    await worker.take()
    await shard.wait(9)
    assert await shard.state(id) is State.RUNNING
    backlog = await shard.add()
    assert await shard.wait(1) == 1
    record = await shard.get(id)
    assert (record.state, record.due, record.attempt) == (State.QUEUED, due, 1)
    assert record.attempts[-1].outcome == "worker_lost"
    assert record.error is not None
    assert b'"worker_lost"' in record.error
    other = await shard.worker()
    assert [(one.id, one.attempt) for one in await other.claim()] == [(id, 2), (backlog, 1)]


async def test_a_claim_settles_leases_of_any_queue(shard: Shard) -> None:
    await shard.add(queue="mail")
    await (await shard.worker(queues=["mail"])).take()
    other = await shard.worker()
    for _ in range(5):
        await shard.turn(2)
        claim = await other.call()
    assert claim.settled == 1
    assert (await shard.snapshot()).counts == {"mail queued": 1}


async def test_losses_count_as_attempts(shard: Shard) -> None:
    id = await shard.add(max_attempts=2)
    await (await shard.worker()).lose(id)
    await (await shard.worker()).lose(id)
    record = await shard.get(id)
    assert (record.state, record.attempt) == (State.FAILED, 2)
    assert record.error is not None
    assert b'"worker_lost"' in record.error
    assert b'"attempt":2' in record.error


async def test_the_third_loss_is_final(shard: Shard) -> None:
    id = await shard.add(max_attempts=9)
    for _ in range(2):
        await (await shard.worker()).lose(id)
        assert await shard.state(id) is State.QUEUED
    await (await shard.worker()).lose(id)
    record = await shard.get(id)
    assert (record.state, record.attempt) == (State.FAILED, 3)
    assert await shard.field(id, "losses") == "3"


async def suspects(shard: Shard, number: int) -> list[str]:
    """Jobs under which two workers were lost."""
    ids = await shard.submit(*(job(max_attempts=9) for _ in range(number)))
    for _ in range(2):
        await (await shard.worker()).lose(*ids)
    return ids


async def test_a_worker_runs_one_suspect_at_a_time(shard: Shard) -> None:
    ids = await suspects(shard, 3)
    innocent = await shard.submit(*(job() for _ in range(3)))
    worker, other = await shard.worker(), await shard.worker()
    held = await worker.claim()
    assert [one.id for one in held] == [ids[0], *innocent]
    assert await worker.claim() == []
    assert [one.id for one in await other.claim()] == [ids[1]]
    # Its suspect may have been handed back, or ended.
    assert await worker.end(held[0], State.QUEUED) == "ok"
    assert [one.id for one in await worker.claim()] == [ids[0]]
    assert await shard.queue.cancel(ids[0])
    assert await worker.claim() == []  # it still runs


async def test_a_suspect_takes_no_other_job_down(shard: Shard) -> None:
    ids = await suspects(shard, 5)
    for id in ids:
        await (await shard.worker()).lose(id)
    assert (await shard.snapshot()).counts == {}
    assert [await shard.field(id, "losses") for id in ids] == ["3"] * 5


async def test_a_parked_suspect_stays_a_suspect(shard: Shard) -> None:
    ids = await suspects(shard, 3)
    ignorant = await shard.worker({"u": 1})
    for _ in ids:
        assert await ignorant.claim() == []
    assert [(await shard.place(id))[0][:4] for id in ids] == ["park"] * 3
    worker, other = await shard.worker(), await shard.worker()
    assert await worker.claim() == []  # they are suspects again
    assert [len(await one.claim()) for one in (worker, other, worker)] == [1, 1, 0]


async def test_heartbeats_keep_leases(shard: Shard) -> None:
    ids = await shard.submit(*(job() for _ in range(3)))
    worker = await shard.worker()
    await worker.claim()
    for _ in range(10):
        assert await shard.wait(5) == 0
        assert await worker.beat() == (True, [], [])
    assert (await shard.snapshot()).zsets["leases"] == dict.fromkeys(ids, shard.ms + 10_000)


async def test_a_heartbeat_renews_an_ended_lease_that_is_not_settled(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    await worker.take()
    for _ in range(6):
        await shard.turn(2)
        await shard.queue.submit(job(queue="other"))  # no process ticks, but Redis is up
    assert await worker.beat() == (True, [], [])
    await shard.wait(9)
    assert await shard.state(id) is State.RUNNING


async def test_a_heartbeat_never_adds_a_lease(shard: Shard) -> None:
    ids = await shard.submit(*(job() for _ in range(4)))
    worker, other = await shard.worker(), await shard.worker()
    claimed = {one.id: one for one in await worker.claim()}
    await worker.end(claimed[ids[0]])
    await worker.end(claimed[ids[1]], State.QUEUED)
    await worker.end(claimed[ids[2]], State.QUEUED)
    assert [one.id for one in await other.claim(slots=1)] == [ids[1]]
    worker.held = {one.id: one.token for one in claimed.values()} | {"nobody": "1.w1"}
    known, lost, cancelled = await worker.beat()
    assert (known, sorted(lost), cancelled) == (True, sorted([*ids[:3], "nobody"]), [])
    assert set((await shard.snapshot()).zsets["leases"]) == {ids[1], ids[3]}


async def test_a_heartbeat_of_an_unknown_worker_renews_leases(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    await worker.take()
    await shard.queue.retire(worker.id)
    await shard.wait(5)
    assert await worker.beat() == (False, [], [])
    assert (await shard.snapshot()).zsets["leases"] == {id: shard.ms + 10_000}
    assert [one.id for one in await shard.queue.workers()] == []


@pytest.mark.parametrize("seconds", [11, 60, 86_400])
async def test_a_stall_ends_no_lease(shard: Shard, seconds: int) -> None:
    ids = await shard.submit(*(job() for _ in range(3)))
    alive, dead = await shard.worker(), await shard.worker()
    await alive.claim(slots=2)
    await dead.claim(slots=1)
    await shard.turn(seconds)  # without ticks: Redis is away, or its clock jumps
    assert await shard.queue.tick() == 0
    assert (await dead.call()).settled == 0
    assert await shard.wait(8) == 0
    assert await alive.beat() == (True, [], [])
    assert await shard.wait(3) == 1
    assert [await shard.state(id) for id in ids] == [State.RUNNING, State.RUNNING, State.QUEUED]


async def test_a_heartbeat_notices_a_stall(shard: Shard) -> None:
    await shard.submit(*(job() for _ in range(2)))
    first, second = await shard.worker(), await shard.worker()
    await first.claim(slots=1)
    await second.claim(slots=1)
    await shard.turn(30)
    await first.beat()
    assert await shard.queue.tick() == 0
    assert await second.beat() == (True, [], [])


async def test_a_short_silence_is_not_a_stall(shard: Shard) -> None:
    await shard.add()
    await (await shard.worker()).take()
    settled = 0
    for _ in range(3):
        await shard.turn(4.9)
        settled += await shard.queue.tick()
    assert settled == 1


@pytest.mark.parametrize("lease", [1.0, 2.0])
async def test_a_lease_as_short_as_a_tick_still_ends(shard: Shard, lease: float) -> None:
    short = Shard(shard.redis, letter="b", lease=lease)
    await short.turn(0)
    await short.silence()
    await short.add()
    await (await short.worker()).take()
    settled = 0
    for _ in range(3):
        await short.turn(1.05)
        settled += await short.queue.tick()
    assert settled == 1


async def running_then_turned(shard: Shard, seconds: float) -> tuple[str, Worker]:
    id = await shard.add()
    worker = await shard.worker()
    await worker.take()
    await shard.turn(seconds)
    return id, worker


async def test_a_clock_step_back_does_not_prolong_leases(shard: Shard) -> None:
    id, _ = await running_then_turned(shard, -3600)
    await shard.queue.tick()
    assert (await shard.snapshot()).zsets["leases"] == {id: shard.ms + 10_000}
    assert await shard.wait(10) == 1


async def test_a_clock_step_back_shortens_many_leases(shard: Shard) -> None:
    await shard.submit(*(job() for _ in range(1200)))
    worker = await shard.worker()
    for _ in range(3):
        await worker.claim(slots=500)
    await shard.turn(-3600)
    assert await shard.wait(30) == 1200


async def test_a_clock_step_back_keeps_holders(shard: Shard) -> None:
    id, worker = await running_then_turned(shard, -3600)
    assert await worker.beat() == (True, [], [])
    await shard.wait(5)
    before = (await shard.get(id)).stamp
    assert await shard.queue.finish(
        [Finish(id, worker.held[id], State.SUCCEEDED, "succeeded")]
    ) == ["ok"]
    assert (await shard.get(id)).stamp > before  # changes stay in order


async def test_due_jobs_stay_due_after_a_clock_step_back(shard: Shard) -> None:
    id = await shard.add()
    await shard.turn(-3600)
    assert (await (await shard.worker()).take()).id == id


async def test_a_clock_step_back_shortens_the_grace(shard: Shard) -> None:
    await running_then_turned(shard, 3600)
    await shard.queue.tick()  # grace begins
    await shard.turn(-3600)
    assert await shard.wait(11) == 1


async def test_a_clock_step_back_delays_no_retry_and_no_delay(shard: Shard) -> None:
    again = await shard.add()
    worker = await shard.worker()
    await worker.end(await worker.take(), State.RETRYING, body=b"{}", delay=2.0)
    delayed = await shard.add(delay=3.0)
    at_noon = await shard.add(run_at=shard.us / 1e6 + 4.0)
    expiring = await shard.add(expires_in=5.0, queue="other")
    await shard.turn(-3600)
    await shard.wait(4)
    assert {one.id for one in await worker.claim()} == {again, delayed}
    assert await shard.state(at_noon) is State.SCHEDULED
    await shard.wait(12)
    assert await shard.state(expiring) is State.FAILED


async def test_a_clock_that_jumps_forwards_and_back_fails_nothing(shard: Shard) -> None:
    id = await shard.add(expires_in=1800)
    worker = await shard.worker(queues=["other"])
    mine = await shard.worker()
    await shard.turn(3600)
    await shard.queue.tick()
    await worker.claim()
    assert await mine.claim() == []  # it may be too late for this job
    await shard.turn(-3600)
    await shard.queue.tick()
    assert [one.id for one in await mine.claim()] == [id]
