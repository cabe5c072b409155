"""A paused queue: nothing of it starts, what runs goes on, and everything comes back in its order."""

from tandem_shared.jobs.states import State
from tests.shared.queue.model.shard import Shard, job


async def test_nothing_of_a_paused_queue_starts_and_what_runs_goes_on(shard: Shard) -> None:
    worker = await shard.worker(queues=["default", "other"])
    await shard.add()
    running = await worker.take()
    await shard.queue.pause("default", on=True)
    id, other = await shard.add(), await shard.add(queue="other")
    assert await shard.state(id) is State.WAITING
    assert [one.id for one in await worker.claim()] == [other]
    assert await worker.end(running) == "ok"
    assert await worker.claim() == []
    await shard.queue.pause("default", on=False)
    assert [one.id for one in await worker.claim()] == [id]
    assert await shard.events(id) == ["queued", "waiting", "queued", "running"]
    assert "paused" not in (await shard.snapshot()).values


async def test_a_backlog_waits_and_comes_back_in_its_order_in_portions(shard: Shard) -> None:
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


async def test_a_job_that_waits_for_its_queue_expires_and_can_be_cancelled(shard: Shard) -> None:
    await shard.queue.pause("default", on=True)
    first, second = await shard.add(expires_in=5.0), await shard.add()
    await shard.queue.cancel(second)
    assert await shard.state(second) is State.CANCELLED
    await shard.wait(6)
    assert await shard.state(first) is State.FAILED
    assert await shard.place(first) == await shard.place(second) == []


async def test_a_key_that_a_paused_job_would_have_had_goes_to_the_next(shard: Shard) -> None:
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
    assert await shard.state(paused) is State.WAITING


async def test_what_falls_due_or_is_retried_meanwhile_waits_too(shard: Shard) -> None:
    worker = await shard.worker()
    later = await shard.add(delay=2.0)
    again = await shard.add()
    claimed = await worker.take()
    await shard.queue.pause("default", on=True)
    await worker.end(claimed, State.RETRYING, body=b"{}", delay=1.0)
    await shard.wait(4)
    assert await worker.claim() == []
    assert {await shard.state(later), await shard.state(again)} == {State.WAITING}
    await shard.queue.pause("default", on=False)
    assert {one.id for one in await worker.claim()} == {later, again}


async def test_resuming_what_is_not_paused_changes_nothing(shard: Shard) -> None:
    await shard.queue.pause("default", on=False)
    assert "paused" not in (await shard.snapshot()).values
    assert await shard.queue.stats() == []
