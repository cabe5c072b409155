"""Code that keeps the event loop from all other jobs, in real workers."""

import asyncio
import json
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from tandem_shared.dev.servers import free_port
from tandem_shared.jobs.states import State
from tests.conftest import eventually
from tests.journeys.stage import WorkerStage, exit_code, until_registered
from tests.journeys.tasks import blocking_tasks, crash_tasks
from tests.worker.workers import Client, outcomes

TASKS = f"{blocking_tasks.__name__},{crash_tasks.__name__}"
ONCE = {"max_attempts": 1}


def lines(stage: WorkerStage, worker: int, event: str) -> list[dict[str, Any]]:
    """The lines of a worker's log about an event."""
    logged = map(json.loads, stage.log(stage.workers[worker]).splitlines())
    return [line for line in logged if line["event"].startswith(event)]


async def test_code_that_blocks_the_loop_is_named_and_judged_by_its_timeout(
    stage: WorkerStage, client: Client
) -> None:
    port = free_port()
    stage.worker(tasks=TASKS, log="json", metrics_port=str(port))
    await until_registered(client, 1)
    assert await probed(port) == 200
    id = await client.submit(blocking_tasks.sleeps, 8.5, timeout=7.0, retry=ONCE)
    await eventually(lambda: lines(stage, 0, "the event loop is blocked"), 20)

    async def is_down() -> bool:
        return await probed(port) == 503

    await eventually(is_down, 20)
    error = await client.error(id)
    assert error["type"] == "timeout"
    first, *others = lines(stage, 0, "the event loop is blocked")
    assert (first["job_id"], first["task"], first["attempt"]) == (id, "blocking.sleeps", 1)
    assert "time.sleep(payload)" in first["stack"]
    assert stage.workers[0].poll() is None
    assert len(others) <= 1  # after 3 s; the next would come after 9


async def probed(port: int) -> int:
    """The status of a worker's /livez."""

    def ask() -> int:
        try:
            with urlopen(f"http://127.0.0.1:{port}/livez", timeout=5) as answer:
                status: int = answer.status
        except HTTPError as error:
            status = error.code
            error.close()
        return status

    return await asyncio.to_thread(ask)


async def test_a_worker_with_a_stuck_loop_ends_and_its_other_jobs_go_on_uncharged(
    stage: WorkerStage, client: Client
) -> None:
    process = stage.worker(tasks=TASKS, log="json")
    await until_registered(client, 1)
    other = await client.submit(crash_tasks.waits, stage.scene)
    await eventually(lambda: stage.notes("begun"), 20)
    stuck = await client.submit(blocking_tasks.spins, retry=ONCE)
    assert await exit_code(process) == 70
    (last,) = lines(stage, 0, "the event loop is blocked beyond")
    assert (last["level"], last["job_id"]) == ("error", stuck)
    assert (await client.error(stuck))["type"] == "timeout"
    record = await client.record(other)
    assert (record.state, record.attempt, outcomes(record)) == (State.QUEUED, 0, ["released"])
    stage.worker(tasks=TASKS)
    await eventually(lambda: len(stage.notes("begun")) == 2, 20)
    stage.go()
    await client.result(other)
