"""Limits of tasks, kept by several worker processes together."""

import asyncio
from itertools import accumulate

from tandem_shared.jobs.states import State
from tests.conftest import eventually
from tests.journeys.stage import RETRY, WorkerStage, until_registered
from tests.journeys.tasks import limited_tasks as tasks
from tests.worker.workers import Client, outcomes


async def start_workers(stage: WorkerStage, client: Client, count: int) -> None:
    for _ in range(count):
        stage.worker(tasks=tasks.__name__)
    await until_registered(client, count)


async def test_three_workers_share_the_limits(stage: WorkerStage, client: Client) -> None:
    await start_workers(stage, client, 3)
    ids = [await client.submit(tasks.two, stage.scene) for _ in range(12)]
    paced = [await client.submit(tasks.paced, number) for number in range(40)]
    await eventually(lambda: len(stage.notes("begun")) == 2)

    async def waiting() -> bool:
        return [(await client.record(id)).state for id in ids].count(State.WAITING) == 10

    await eventually(waiting)
    stage.go()
    await asyncio.gather(*(client.result(id) for id in ids))
    words = [word for word, _, _ in stage.all_notes()]
    assert words.count("ended") == 12
    assert max(accumulate(1 if word == "begun" else -1 for word in words)) == 2
    assert await asyncio.gather(*(client.result(id) for id in paced)) == list(range(40))
    starts = sorted(
        [(await client.record(id)).began or 0 for id in paced]
    )  # microseconds, on Redis' clock
    burst, every = 2, 50_000
    for first, start in enumerate(starts):
        for last in range(first, len(starts)):
            assert last - first + 1 <= burst + (starts[last] - start) // every


async def test_a_killed_worker_leaks_no_slot(stage: WorkerStage, client: Client) -> None:
    await start_workers(stage, client, 1)
    ids = [await client.submit(tasks.two, stage.scene, retry=RETRY) for _ in range(4)]
    await eventually(lambda: len(stage.notes("begun")) == 2)
    stage.workers[0].kill()
    stage.go()
    stage.worker(tasks=tasks.__name__)
    await asyncio.gather(*(client.result(id) for id in ids))
    seen = [outcomes(await client.record(id)) for id in ids]
    assert seen == [["worker_lost", "succeeded"]] * 2 + [["succeeded"]] * 2
    assert await client.redis.keys(f"{client.queue.prefix}slots:*") == []
