"""Paused queues: their jobs do not start, running ones continue, and all come back in order."""

from tandem_shared.jobs.states import State
from tests.shared.queue.model.shard import Shard, job


async def test_a_paused_queue_starts_no_jobs_and_running_ones_continue(shard: Shard) -> None:
    worker = await shard.worker(queues=["default", "other"])
    await shard.add()
    running = await worker.take()
    await shard.queue.pause("default", on=True)
    id, other = await shard.add(), await shard.add(queue="other")
    assert [one.id for one in await worker.claim()] == [other]
    assert await worker.end(running) == "ok"
    assert await worker.claim() == []
    await shard.queue.pause("default", on=False)
    assert [one.id for one in await worker.claim()] == [id]
    assert await shard.events(id) == ["queued", "running"]
    assert "paused" not in (await shard.snapshot()).values


async def test_a_paused_backlog_comes_back_in_order(shard: Shard) -> None:
    worker = await shard.worker()
    ids = await shard.submit(
        *(job(priority="low" if number % 2 else "high") for number in range(250))
    )
    await shard.queue.pause("default", on=True)
    assert await worker.claim() == []
    await shard.wait(3)
    stats = {one.name: one for one in await shard.queue.stats()}["default"]
    assert (stats.paused, stats.waiting, stats.queued) == (True, 250, 0)
    assert stats.oldest_age is not None
    await shard.queue.pause("default", on=False)
    await shard.wait(3)
    stats = {one.name: one for one in await shard.queue.stats()}["default"]
    assert (stats.paused, stats.waiting, stats.queued) == (False, 0, 250)
    taken = [one.id for _ in range(25) for one in await worker.claim(slots=10)]
    assert sorted(taken) == sorted(ids)
    assert [id for id in taken if id in ids[::2]] == ids[::2]


async def test_a_job_of_a_paused_queue_can_expire_and_be_cancelled(shard: Shard) -> None:
    await shard.queue.pause("default", on=True)
    first, second = await shard.add(expires_in=5.0), await shard.add()
    await shard.queue.cancel(second)
    assert await shard.state(second) is State.CANCELLED
    await shard.wait(6)
    assert await shard.state(first) is State.FAILED
    assert await shard.place(first) == await shard.place(second) == []


async def test_a_paused_job_passes_its_concurrency_key_on(shard: Shard) -> None:
    worker = await shard.worker(queues=["default", "other"])
    await shard.add(concurrency_key="k")
    holder = await worker.take()
    paused = await shard.add(concurrency_key="k")
    other = await shard.add(queue="other", concurrency_key="k")
    assert await worker.claim() == []
    await shard.queue.pause("default", on=True)
    await worker.end(holder)
    await shard.wait(1)
    assert (await worker.take()).id == other
    assert await shard.state(paused) is State.QUEUED


async def test_jobs_that_fall_due_in_a_paused_queue_wait(shard: Shard) -> None:
    worker = await shard.worker()
    later = await shard.add(delay=2.0)
    again = await shard.add()
    claimed = await worker.take()
    await shard.queue.pause("default", on=True)
    await worker.end(claimed, State.RETRYING, body=b"{}", delay=1.0)
    await shard.wait(4)
    assert await worker.claim() == []
    assert {await shard.state(later), await shard.state(again)} == {State.QUEUED}
    await shard.queue.pause("default", on=False)
    assert {one.id for one in await worker.claim()} == {later, again}


async def test_resuming_an_active_queue_changes_nothing(shard: Shard) -> None:
    await shard.queue.pause("default", on=False)
    assert "paused" not in (await shard.snapshot()).values
    assert await shard.queue.stats() == []
