"""Deployments: restarts under load, and workers with different versions of a task."""

import signal
import tempfile
from pathlib import Path

import pytest

from tandem_shared.jobs.states import State
from tests.chaos.deploy import SETTINGS, roll
from tests.chaos.stage import open_stage
from tests.conftest import eventually
from tests.journeys.stage import WorkerStage, exit_code, until_registered
from tests.journeys.tasks import newer_tasks, older_tasks
from tests.worker.workers import Client


@pytest.mark.timeout(240)
async def test_a_rolling_restart_fails_no_request_and_charges_no_attempt() -> None:
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        Path(directory).chmod(0o711)  # readable for PostgreSQL's user
        async with open_stage(Path(directory), settings=SETTINGS) as stage:
            rolled = await roll(stage, rate=40)
            errors = stage.logged("[error")
    assert (rolled.failed, rolled.lost, rolled.charged) == ({}, 0, 0), (rolled, errors)
    assert rolled.codes == [0] * 5
    assert errors == []
    assert rolled.requests > 100


async def test_only_newer_workers_run_jobs_of_a_newer_version(
    stage: WorkerStage, client: Client
) -> None:
    older = stage.worker(tasks=older_tasks.__name__)
    await until_registered(client, 1)
    assert await client.result(await client.submit(older_tasks.answer, 1)) == "older 1"
    elsewhere = stage.worker(tasks=newer_tasks.__name__, queues="elsewhere")
    await until_registered(client, 2)
    early = [await client.submit(newer_tasks.answer, number) for number in range(5)]
    for id in early:
        await client.reaches(id, State.WAITING)
    newer = stage.worker(tasks=newer_tasks.__name__)
    await until_registered(client, 3)
    both = [await client.submit(newer_tasks.answer, number) for number in range(20)]
    for number, id in [*enumerate(early), *enumerate(both)]:
        assert await client.result(id) == f"newer {number}"
    older.send_signal(signal.SIGTERM)
    assert await exit_code(older) == 0
    # Newer workers also run jobs of the older version.
    assert await client.result(await client.submit(older_tasks.answer, 2)) == "newer 2"
    assert newer.poll() is elsewhere.poll() is None


async def test_a_rolled_back_deployment_runs_its_jobs(stage: WorkerStage, client: Client) -> None:
    newer = stage.worker(tasks=newer_tasks.__name__)
    await until_registered(client, 1)
    assert await client.result(await client.submit(newer_tasks.answer, 1)) == "newer 1"
    newer.send_signal(signal.SIGTERM)
    assert await exit_code(newer) == 0
    early = await client.submit(newer_tasks.answer, 2)
    stage.worker(tasks=older_tasks.__name__)

    async def is_rolled_back() -> bool:
        await client.queue.tick()  # as an API does
        entries = {one.name: one for one in await client.queue.catalogue_entries()}
        return entries["deployed.answer"].version == 1

    await eventually(is_rolled_back, 60)
    assert await client.result(early) == "older 2"
    assert await client.result(await client.submit(older_tasks.answer, 3)) == "older 3"
