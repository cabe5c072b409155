"""Cancelling: at once if a job is not running; a running one is cancelled whatever its outcome."""

import pytest

from tandem_shared.jobs.states import State
from tests.shared.queue.model.shard import Shard, job


async def in_state(shard: Shard, state: State) -> str:
    """A job in a state that is neither running nor final."""
    if state is State.SCHEDULED:
        return await shard.add(delay=60)
    id = await shard.add(queue="x", task="u" if state is State.WAITING else "t")
    if state is not State.QUEUED:
        worker = await shard.worker(queues=["x"])
        claimed = await worker.claim()
        if state is State.RETRYING:
            await worker.end(claimed[0], State.RETRYING, body=b"{}", delay=60)
    assert await shard.state(id) is state
    return id


@pytest.mark.parametrize("state", [State.SCHEDULED, State.QUEUED, State.WAITING, State.RETRYING])
async def test_a_job_that_is_not_running_is_cancelled_at_once(shard: Shard, state: State) -> None:
    id = await in_state(shard, state)
    await shard.turn(1)
    record = await shard.queue.cancel(id)
    assert record is not None
    assert (record.state, record.ended, record.cancel) == (State.CANCELLED, shard.us, shard.us)
    assert await shard.place(id) == []
    assert await shard.queue.cancel(id) == record
    worker = await shard.worker({"t": 1, "u": 1}, queues=["x", "default"])
    await shard.wait(70)
    assert await worker.claim() == []


async def test_a_suspect_is_cancelled_at_once(shard: Shard) -> None:
    id = await shard.add()
    for _ in range(2):
        await (await shard.worker()).lose(id)
    assert await shard.place(id) == ["suspects:default"]
    record = await shard.queue.cancel(id)
    assert record is not None
    assert record.state is State.CANCELLED


async def test_a_running_job_gets_one_cancel_request(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    await worker.take()
    await shard.turn(1)
    record = await shard.queue.cancel(id)
    assert record is not None
    assert (record.state, record.cancel, record.stamp) == (State.RUNNING, shard.us, shard.us)
    await shard.turn(1)
    assert await shard.queue.cancel(id) == record
    assert (await shard.snapshot()).values[f"bell:{worker.id}"] == [
        f"cancel {id} {worker.held[id]}"
    ]
    # Repeated in the answers to heartbeats until the worker obeys.
    assert await worker.beat() == (True, [], [id])
    assert await worker.beat() == (True, [], [id])


@pytest.mark.parametrize(
    "to", [State.SUCCEEDED, State.FAILED, State.RETRYING, State.QUEUED, State.CANCELLED]
)
async def test_a_cancel_request_wins_over_every_outcome(shard: Shard, to: State) -> None:
    id = await shard.add()
    worker = await shard.worker()
    claimed = await worker.take()
    await shard.queue.cancel(id)
    answer = "ok" if to is State.CANCELLED else "cancelled"
    assert await worker.end(claimed, to, body=b"1", files=b"[]") == answer
    record = await shard.get(id)
    assert (record.state, record.result, record.error, record.files) == (
        State.CANCELLED,
        None,
        None,
        None,
    )
    assert (record.attempt, record.attempts[0].outcome) == (1, "cancelled")
    assert await worker.end(claimed, to) == answer  # a repeat


async def test_a_job_that_ignores_a_cancel_loses_its_lease_with_the_grace(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    claimed = await worker.take()
    await shard.queue.cancel(id)
    assert (await shard.snapshot()).zsets["leases"] == {id: shard.ms + 5000}
    for _ in range(4):
        await shard.wait(1)
        await worker.beat()  # does not help
    assert await shard.state(id) is State.RUNNING
    await shard.wait(1)
    record = await shard.get(id)
    assert (record.state, record.attempts[0].outcome) == (State.CANCELLED, "cancelled")
    assert await worker.end(claimed, body=b"1") == "lost"
    assert await worker.beat() == (True, [], [])


async def test_a_cancel_never_prolongs_a_lease(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    await worker.take()
    await shard.wait(8)
    await shard.queue.cancel(id)
    assert await shard.wait(2) == 1
    assert await shard.state(id) is State.CANCELLED


async def test_a_lost_worker_does_not_undo_a_cancel(shard: Shard) -> None:
    id = await shard.add(max_attempts=5)
    worker = await shard.worker()
    await worker.take()
    await shard.queue.cancel(id)
    await shard.silence()
    assert await shard.state(id) is State.CANCELLED
    assert await shard.events(id) == ["queued", "running", "running", "cancelled"]


async def test_a_final_job_cannot_be_cancelled(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    await worker.end(await worker.take(), body=b"1")
    before = await shard.get(id)
    await shard.turn(1)
    assert await shard.queue.cancel(id) == before


async def test_cancelling_a_woken_job_wakes_the_next(shard: Shard) -> None:
    ids = await shard.submit(*(job(concurrency_key="k") for _ in range(3)))
    worker = await shard.worker()
    claimed = await worker.take()
    await worker.end(claimed)
    assert [await shard.state(id) for id in ids] == [State.SUCCEEDED, State.QUEUED, State.WAITING]
    await shard.queue.cancel(ids[1])
    assert await shard.state(ids[2]) is State.QUEUED
    assert (await worker.take()).id == ids[2]


async def test_cancelling_a_parked_job_wakes_no_other(shard: Shard) -> None:
    ids = await shard.submit(*(job(concurrency_key="k") for _ in range(3)))
    worker = await shard.worker()
    await worker.take()
    await shard.queue.cancel(ids[1])
    assert await shard.state(ids[2]) is State.WAITING
