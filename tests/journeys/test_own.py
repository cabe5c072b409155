"""Workers are killed and stopped inside steps and locks: steps run once, locks stay exclusive."""

import signal
from collections.abc import AsyncIterator

import pytest

from tests.conftest import eventually
from tests.journeys.tasks import own_tasks as tasks
from tests.journeys.test_crashes import LEASE, MANY, Stage, registered
from tests.journeys.test_crashes import stage as stage  # noqa: PLC0414 - a fixture is found by its name
from tests.worker.workers import Client, open_client, outcomes


@pytest.fixture
async def client(stage: Stage) -> AsyncIterator[Client]:
    await stage.redis()
    async with open_client(stage.server.url, LEASE) as opened:
        yield opened


def holders(stage: Stage) -> list[tuple[str, int]]:
    """(word, fence) of what the holders of the lock have noted, in order."""
    lines = [line.split() for line in (stage.directory / "notes").read_text().splitlines()]
    return [(word, int(fence)) for word, fence, _ in lines]


async def test_a_worker_killed_between_two_steps_does_not_redo_the_first(
    stage: Stage, client: Client
) -> None:
    worker = stage.worker(tasks=tasks.__name__)
    id = await client.submit(tasks.steps, stage.scene, retry=MANY)
    await eventually(lambda: stage.notes("between"), 30)
    worker.kill()
    stage.worker(tasks=tasks.__name__)
    await eventually(lambda: len(stage.notes("between")) == 2, 30)
    assert [attempt for attempt, _ in stage.notes("first")] == [1]
    stage.go()
    assert await client.result(id) == ["made by 1", "made by 2"]
    assert [attempt for attempt, _ in stage.notes("first")] == [
        1,
        2,
    ]  # the second one is the second step
    assert outcomes(await client.record(id)) == ["worker_lost", "succeeded"]


async def test_a_lock_has_one_holder_though_a_worker_is_killed_with_it(
    stage: Stage, client: Client
) -> None:
    first, second = (stage.worker(tasks=tasks.__name__, lease="3s") for _ in range(2))
    await registered(client, 2)
    held = await client.submit(tasks.door, stage.scene, retry=MANY)
    await eventually(lambda: stage.notes("in"), 30)
    holder, other = (first, second) if stage.pids("in") == {first.pid} else (second, first)
    kinds = (tasks.brief, tasks.thread)
    ids = [
        held,
        *[await client.submit(kinds[number % 2], stage.scene, retry=MANY) for number in range(20)],
    ]
    await eventually(lambda: all_wait(client, 20), 30)
    assert len(holders(stage)) == 1
    holder.kill()
    await eventually(lambda: other.pid in stage.pids("in"), 30)
    stage.go()
    fences = [await client.result(id) for id in ids]
    (_, killed), *noted = holders(stage)
    assert [word for word, _ in noted] == ["in", "out"] * 21
    assert (
        [fence for _, fence in noted[::2]]
        == [fence for _, fence in noted[1::2]]
        == sorted(set(fences))
    )
    assert killed < min(fences)
    assert stage.pids("out") == {other.pid}


async def all_wait(client: Client, count: int) -> bool:
    return bool(await client.redis.zcard(f"{client.queue.prefix}waits:default:door") == count)


async def test_a_holder_that_sleeps_for_longer_than_its_lease_is_told(
    stage: Stage, client: Client
) -> None:
    sleeper = stage.worker(tasks=tasks.__name__)
    id = await client.submit(tasks.door, stage.scene, retry=MANY)
    await eventually(lambda: stage.pids("in") == {sleeper.pid}, 30)
    other = stage.worker(tasks=tasks.__name__)
    await registered(client, 2)
    sleeper.send_signal(signal.SIGSTOP)
    await eventually(lambda: other.pid in stage.pids("in"), 30)
    sleeper.send_signal(signal.SIGCONT)
    await eventually(lambda: stage.pids("lost") == {sleeper.pid}, 30)
    stage.go()
    (_, before), (_, after), *_ = holders(stage)
    assert after > before
    assert await client.result(id) == after
    assert [word for word, fence in holders(stage) if fence == before] == ["in", "lost"]
    assert outcomes(await client.record(id)) == ["worker_lost", "succeeded"]
