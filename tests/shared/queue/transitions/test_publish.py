"""What is published of tasks: the versions that live workers bring, also after a rollback."""

from collections.abc import Mapping

import pytest

from tandem_shared.jobs.states import State
from tests.shared.queue.model.shard import Shard, job

DAY = 86400


async def versions(shard: Shard) -> dict[str, int]:
    return {one.name: one.version for one in await shard.queue.catalogue_entries()}


@pytest.mark.parametrize("retires", [True, False], ids=["retired", "killed"])
async def test_a_deployment_that_is_rolled_back_runs_all_jobs_within_a_minute(
    shard: Shard, *, retires: bool
) -> None:
    older = await shard.worker({"t": 1})
    newer = await shard.worker({"t": 2})
    assert await versions(shard) == {"t": 2}
    early, stuck = await shard.submit(job(version=1), job(version=2))
    assert [one.id for one in await older.claim()] == [early]
    assert await shard.state(stuck) is State.WAITING
    if retires:
        await shard.queue.retire(newer.id)
    for _ in range(12):  # less than a minute
        await older.beat()
        await shard.wait(4)
    assert await versions(shard) == {"t": 1}
    late = await shard.add(version=1)
    assert {one.id for one in await older.claim()} == {stuck, late}


async def test_a_newer_version_is_waited_for_while_a_worker_publishes_it(shard: Shard) -> None:
    older = await shard.worker({"t": 1})
    newer = await shard.worker({"t": 2}, queues=("other",))
    id = await shard.add(version=2)
    for _ in range(12):
        await older.beat()
        await newer.beat()
        await shard.wait(4)
    assert await versions(shard) == {"t": 2}
    assert await older.claim() == []
    assert await shard.place(id) == ["park:task:default:2:t"]


async def test_the_limits_of_the_published_version_hold(shard: Shard) -> None:
    older = await shard.worker({"t": 1}, concurrency=1)
    newer = await shard.worker({"t": 2})
    await shard.submit(*(job() for _ in range(5)))
    await shard.queue.retire(newer.id)
    for _ in range(3):
        await older.beat()
        await shard.wait(4)
    assert len(await older.claim()) == 1


async def serving(shard: Shard) -> tuple[Mapping[str, int], Mapping[str, int]]:
    found = await shard.queue.serving()
    return found.queues, found.tasks


async def test_tasks_without_workers_are_marked_and_forgotten_after_a_day(shard: Shard) -> None:
    a = await shard.worker({"a": 1, "both": 1}, queues=("x",))
    b = await shard.worker({"b": 1, "both": 1}, queues=("x", "y"))
    assert await serving(shard) == ({"x": 2, "y": 1}, {"a": 1, "b": 1, "both": 2})
    await shard.queue.retire(a.id)
    assert await serving(shard) == ({"x": 1, "y": 1}, {"b": 1, "both": 1})
    stamp = await shard.queue.catalogue_stamp()
    for _ in range(25):
        await shard.turn(DAY / 24 - 10)
        await b.beat()
        await shard.wait(6)
    assert await versions(shard) == {"b": 1, "both": 1}
    assert await shard.queue.catalogue_stamp() != stamp
    # Without any worker, what was published last stays for as long.
    await shard.turn(DAY / 2)
    await shard.queue.tick()
    assert await serving(shard) == ({}, {})
    assert await versions(shard) == {"b": 1, "both": 1}
    await shard.turn(DAY)
    await shard.queue.tick()
    assert await versions(shard) == {}
