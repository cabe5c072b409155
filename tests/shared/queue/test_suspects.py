"""Suspects: jobs under which two workers were lost. One of them may be the cause."""

from typing import Any

from tandem_shared.jobs.states import State
from tests.shared.queue.model.shard import Shard, job


async def lost_twice(shard: Shard, number: int = 1, **given: Any) -> list[str]:
    """Jobs under which two workers were lost."""
    given = {"max_attempts": 9, **given}
    queue = str(given.get("queue", "default"))
    ids = await shard.submit(*(job(**given) for _ in range(number)))
    for _ in range(2):
        await (await shard.worker(queues=[queue])).lose(*ids)
    return ids


async def test_the_end_of_a_suspect_wakes_its_worker_for_the_next(shard: Shard) -> None:
    ids = await lost_twice(shard, 3)
    worker = await shard.worker()
    first = await worker.take()
    assert (await worker.call()).more is False
    await worker.end(first)
    assert (await shard.snapshot()).values[f"bell:{worker.id}"] == ["wake"]
    assert [one.id for one in await worker.claim()] == [ids[1]]


async def test_suspects_of_a_paused_or_unserved_queue_hide_no_others(shard: Shard) -> None:
    for queue in ("paused", "unserved"):
        await lost_twice(shard, 10, queue=queue)
    (mine,) = await lost_twice(shard)
    await shard.queue.pause("paused", on=True)
    worker = await shard.worker(queues=["default", "paused"])
    assert [one.id for one in await worker.claim()] == [mine]


async def test_a_loss_beside_other_jobs_does_not_end_a_suspect(shard: Shard) -> None:
    (suspect,) = await lost_twice(shard, max_attempts=3)
    fresh = await shard.add()
    worker = await shard.worker()
    assert {one.id for one in await worker.claim()} == {suspect, fresh}
    await shard.silence()
    record = await shard.get(suspect)
    assert (record.state, record.attempt) == (State.QUEUED, 2)
    assert record.attempts[-1].outcome == "worker_lost"
    # Now it runs alone: a worker with other jobs takes no more until it is free for it.
    busy = await shard.worker()
    others = await shard.submit(*(job() for _ in range(3)))
    (taken,) = await busy.claim(slots=1)
    assert taken.id == suspect
    claim = await busy.call()
    assert (claim.jobs, claim.blocked) == ([], True)
    await busy.end(taken)
    assert {one.id for one in await busy.claim()} == {fresh, *others}


async def test_a_busy_worker_empties_itself_for_a_suspect_that_runs_alone(shard: Shard) -> None:
    (suspect,) = await lost_twice(shard)
    await shard.add()
    await (await shard.worker()).lose(suspect)  # beside the other job
    busy, other = await shard.worker(queues=["busy"]), await shard.worker(queues=["busy"])
    await shard.add(queue="busy")
    running = await busy.take()
    busy.queues = ["busy", "default"]
    await busy.register()
    await shard.submit(*(job(queue="busy") for _ in range(2)))
    assert (await busy.call()).jobs == []
    assert len(await other.claim()) == 2
    await busy.end(running)
    assert [one.id for one in await busy.claim()] == [suspect]


async def test_a_third_loss_while_alone_is_final(shard: Shard) -> None:
    (suspect,) = await lost_twice(shard)
    await shard.add()
    await (await shard.worker()).lose(suspect)  # beside the other job
    assert await shard.state(suspect) is State.QUEUED
    await (await shard.worker()).lose(suspect)
    assert await shard.state(suspect) is State.FAILED


async def test_a_suspect_that_began_alone_and_got_company_is_not_ended(shard: Shard) -> None:
    (suspect,) = await lost_twice(shard)
    worker = await shard.worker()
    assert (await worker.take()).id == suspect
    await shard.add()
    assert len(await worker.claim()) == 1
    await shard.silence()
    assert await shard.state(suspect) is State.QUEUED
