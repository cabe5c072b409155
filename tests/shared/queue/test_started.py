"""Jobs that were claimed ahead: what their loss costs, and which jobs are claimed ahead at all."""

from typing import Any

import pytest

from tandem_shared.jobs.states import State
from tests.shared.queue.model.shard import Shard, job


async def test_an_attempt_that_never_started_is_not_charged(shard: Shard) -> None:
    ids = await shard.submit(*(job(max_attempts=1) for _ in range(6)))
    worker = await shard.worker()
    claim = await worker.call(slots=6, free=2)
    assert [one.id for one in claim.jobs] == ids
    await shard.silence()
    states = [await shard.state(id) for id in ids]
    assert states == [State.FAILED] * 2 + [State.QUEUED] * 4
    record = await shard.get(ids[2])
    assert (record.attempt, record.error) == (0, None)
    assert [one.outcome for one in record.attempts] == ["released"]


async def test_a_job_that_did_not_start_once_is_not_claimed_ahead_again(shard: Shard) -> None:
    first, second = await shard.submit(job(max_attempts=9), job(max_attempts=9))
    await (await shard.worker()).call(slots=2, free=1)
    await shard.silence()
    worker = await shard.worker()
    claim = await worker.call(slots=2, free=1)
    assert [one.id for one in claim.jobs] == [first]
    assert claim.blocked
    assert await worker.end(claim.jobs[0]) == "ok"
    assert [one.id for one in await worker.claim()] == [second]
    await shard.silence()
    assert (await shard.get(second)).attempt == 1  # it started, so this loss is charged


@pytest.mark.parametrize("how", ["claim", "beat"])
async def test_an_attempt_that_the_worker_told_of_is_charged(shard: Shard, how: str) -> None:
    ids = await shard.submit(*(job(max_attempts=1) for _ in range(2)))
    worker = await shard.worker()
    claim = await worker.call(slots=2, free=1)
    began = int(claim.jobs[1].token.partition(".")[0])
    if how == "claim":
        await worker.call(slots=1, free=0, started=began)
    else:
        held = list(worker.held.items())
        await shard.queue.beat(worker.id, worker.digest, held, started=began)
        await shard.queue.beat(worker.id, worker.digest, held, started=0)  # an older one, late
    await shard.silence()
    assert [await shard.state(id) for id in ids] == [State.FAILED] * 2


@pytest.mark.parametrize("read", [False, True])
async def test_a_claim_that_a_living_worker_never_read_is_not_charged(
    shard: Shard, *, read: bool
) -> None:
    """Its event loop is blocked, or the reply was lost, while its heart beats."""
    id = await shard.add(max_attempts=1)
    worker = await shard.worker()
    claimed = await worker.take()
    worker.held.clear()
    began = int(claimed.token.partition(".")[0]) if read else 0
    for _ in range(12):
        await shard.wait(1)
        await shard.queue.beat(worker.id, worker.digest, [], started=began)
    record = await shard.get(id)
    outcome = "worker_lost" if read else "released"
    assert [one.outcome for one in record.attempts] == [outcome]
    assert (record.state, record.attempt) == ((State.FAILED, 1) if read else (State.QUEUED, 0))


@pytest.mark.parametrize("how", ["concurrency", "rate", "key"])
async def test_jobs_with_limits_are_not_claimed_ahead(shard: Shard, how: str) -> None:
    limits: dict[str, dict[str, Any]] = {
        "concurrency": {"concurrency": 5},
        "rate": {"rate": "100/s"},
        "key": {},
    }
    worker = await shard.worker(**limits[how])
    given: dict[str, Any] = {"concurrency_key": "k", "concurrency_limit": 5} if how == "key" else {}
    await shard.submit(*(job(**given) for _ in range(3)))
    claim = await worker.call(slots=3, free=1)
    assert (len(claim.jobs), claim.blocked) == (1, True)
    snapshot = await shard.snapshot()
    held = [value for key, value in snapshot.values.items() if key.startswith("slots:")]
    assert sum(map(len, held)) == (0 if how == "rate" else 1)
    assert (await worker.call(slots=3, free=0)).jobs == []
