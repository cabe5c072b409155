"""Deployments: restarts under load, and workers with different versions of a task."""

import signal
import tempfile
from pathlib import Path

import pytest

from tandem_shared.jobs.states import State
from tests.chaos.deploy import SETTINGS, roll
from tests.chaos.stage import open_stage
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
    early = [await client.submit(newer_tasks.answer, number) for number in range(5)]
    for id in early:
        await client.reaches(id, State.WAITING)
    newer = stage.worker(tasks=newer_tasks.__name__)
    await until_registered(client, 2)
    both = [await client.submit(newer_tasks.answer, number) for number in range(20)]
    for number, id in [*enumerate(early), *enumerate(both)]:
        assert await client.result(id) == f"newer {number}"
    older.send_signal(signal.SIGTERM)
    assert await exit_code(older) == 0
    # Newer workers also run jobs of the older version.
    assert await client.result(await client.submit(older_tasks.answer, 2)) == "newer 2"
    assert newer.poll() is None
