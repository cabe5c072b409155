"""Steps and locks while workers are killed and stopped."""

import signal

from tests.conftest import eventually
from tests.journeys.stage import RETRY, WorkerStage, until_registered
from tests.journeys.tasks import step_tasks as tasks
from tests.worker.workers import Client, outcomes


def fences(stage: WorkerStage) -> list[tuple[str, int]]:
    """(word, fence) of the notes that the lock's holders left, in order."""
    return [(word, fence) for word, fence, _ in stage.all_notes()]


async def test_a_worker_killed_between_two_steps_does_not_redo_the_first(
    stage: WorkerStage, client: Client
) -> None:
    worker = stage.worker(tasks=tasks.__name__)
    id = await client.submit(tasks.steps, stage.scene, retry=RETRY)
    await eventually(lambda: stage.notes("between"), 30)
    worker.kill()
    stage.worker(tasks=tasks.__name__)
    await eventually(lambda: len(stage.notes("between")) == 2, 30)
    assert [attempt for attempt, _ in stage.notes("first")] == [1]
    stage.go()
    assert await client.result(id) == ["made by 1", "made by 2"]
    assert [attempt for attempt, _ in stage.notes("first")] == [1, 2]  # 2: of the second step
    assert outcomes(await client.record(id)) == ["worker_lost", "succeeded"]


async def test_a_lock_has_one_holder_after_its_worker_is_killed(
    stage: WorkerStage, client: Client
) -> None:
    first, second = (stage.worker(tasks=tasks.__name__, lease="3s") for _ in range(2))
    await until_registered(client, 2)
    held = await client.submit(tasks.door, stage.scene, retry=RETRY)
    await eventually(lambda: stage.notes("in"), 30)
    holder, other = (first, second) if stage.pids("in") == {first.pid} else (second, first)
    functions = (tasks.brief, tasks.thread)
    ids = [
        held,
        *[
            await client.submit(functions[number % 2], stage.scene, retry=RETRY)
            for number in range(20)
        ],
    ]
    await eventually(lambda: are_waiting(client, 20), 30)
    assert len(fences(stage)) == 1
    holder.kill()
    await eventually(lambda: other.pid in stage.pids("in"), 30)
    stage.go()
    results = [await client.result(id) for id in ids]
    (_, killed), *noted = fences(stage)
    assert [word for word, _ in noted] == ["in", "out"] * 21
    assert (
        [fence for _, fence in noted[::2]]
        == [fence for _, fence in noted[1::2]]
        == sorted(set(results))
    )
    assert killed < min(results)
    assert stage.pids("out") == {other.pid}


async def are_waiting(client: Client, count: int) -> bool:
    return bool(await client.redis.zcard(f"{client.queue.prefix}waits:default:door") == count)


async def test_a_holder_that_slept_through_its_lease_is_cancelled(
    stage: WorkerStage, client: Client
) -> None:
    sleeper = stage.worker(tasks=tasks.__name__)
    id = await client.submit(tasks.door, stage.scene, retry=RETRY)
    await eventually(lambda: stage.pids("in") == {sleeper.pid}, 30)
    other = stage.worker(tasks=tasks.__name__)
    await until_registered(client, 2)
    sleeper.send_signal(signal.SIGSTOP)
    await eventually(lambda: other.pid in stage.pids("in"), 30)
    sleeper.send_signal(signal.SIGCONT)
    await eventually(lambda: stage.pids("lost") == {sleeper.pid}, 30)
    stage.go()
    (_, before), (_, after), *_ = fences(stage)
    assert after > before
    assert await client.result(id) == after
    assert [word for word, fence in fences(stage) if fence == before] == ["in", "lost"]
    assert outcomes(await client.record(id)) == ["worker_lost", "succeeded"]
