"""Several worker processes keep the limits of their tasks together."""

import asyncio
from collections.abc import AsyncIterator
from itertools import accumulate
from pathlib import Path

import pytest

from tandem_shared.jobs.states import State
from tests.conftest import eventually
from tests.journeys.tasks import limited_tasks as tasks
from tests.journeys.test_crashes import LEASE, MANY, Stage
from tests.journeys.test_crashes import stage as stage  # noqa: PLC0414 - a fixture is found by its name
from tests.worker.workers import Client, open_client, outcomes


@pytest.fixture
async def client(stage: Stage) -> AsyncIterator[Client]:
    await stage.redis()
    async with open_client(stage.server.url, LEASE) as opened:
        yield opened


async def workers(stage: Stage, client: Client, number: int) -> None:
    for _ in range(number):
        stage.worker(tasks=tasks.__name__)

    async def registered() -> bool:
        return len(await client.queue.workers()) == number

    await eventually(registered, 30)


async def test_three_workers_keep_the_limits_together(stage: Stage, client: Client) -> None:
    await workers(stage, client, 3)
    ids = [await client.submit(tasks.two, stage.scene) for _ in range(12)]
    paced = [await client.submit(tasks.paced, number) for number in range(40)]
    await eventually(lambda: len(stage.notes("begun")) == 2)

    async def waiting() -> bool:
        return [(await client.record(id)).state for id in ids].count(State.WAITING) == 10

    await eventually(waiting)
    stage.go()
    await asyncio.gather(*(client.result(id) for id in ids))
    words = [line.split()[0] for line in Path(stage.scene["notes"]).read_text().splitlines()]
    assert words.count("ended") == 12
    assert max(accumulate(1 if word == "begun" else -1 for word in words)) == 2
    assert await asyncio.gather(*(client.result(id) for id in paced)) == list(range(40))
    starts = sorted([(await client.record(id)).began or 0 for id in paced])  # µs of Redis
    burst, every = 2, 50_000
    for first, start in enumerate(starts):
        for last in range(first, len(starts)):
            assert last - first + 1 <= burst + (starts[last] - start) // every


async def test_a_killed_worker_leaks_no_slot(stage: Stage, client: Client) -> None:
    await workers(stage, client, 1)
    ids = [await client.submit(tasks.two, stage.scene, retry=MANY) for _ in range(4)]
    await eventually(lambda: len(stage.notes("begun")) == 2)
    stage.workers[0].kill()
    stage.go()
    stage.worker(tasks=tasks.__name__)
    await asyncio.gather(*(client.result(id) for id in ids))
    seen = [outcomes(await client.record(id)) for id in ids]
    assert seen == [["worker_lost", "succeeded"]] * 2 + [["succeeded"]] * 2
    assert await client.redis.keys(f"{client.queue.prefix}slots:*") == []
