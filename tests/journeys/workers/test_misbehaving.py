"""Jobs whose code misbehaves on real workers: they end as they should, and so does all else."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tandem_shared.jobs.states import State
from tests.conftest import eventually
from tests.journeys.stage import WorkerStage, exit_code, until_registered
from tests.journeys.tasks import misbehaving_tasks as tasks
from tests.worker.workers import Client, outcomes


def start(stage: WorkerStage, **settings: str) -> Any:
    given: Any = {"tasks": tasks.__name__, **settings}
    return stage.worker(**given)


async def zombies(client: Client) -> int:
    return sum(worker.zombies for worker in await client.queue.workers())


@pytest.mark.parametrize("function", [tasks.swallows, tasks.shields, tasks.hangs])
async def test_code_that_ignores_its_timeout_takes_no_slot_from_the_next_job(
    stage: WorkerStage, client: Client, function: Callable[..., Any]
) -> None:
    worker = start(stage, concurrency="1")
    for _ in range(2):
        id = await client.submit(function)
        assert (await client.error(id))["type"] == "timeout"
        assert outcomes(await client.record(id)) == ["timeout"]
        for good in (tasks.good_async, tasks.good_thread):
            assert await client.result(await client.submit(good, 3)) == 3

    async def both_are_shown() -> bool:
        return await zombies(client) == 2

    await eventually(both_are_shown, 30)
    lines = [line for line in stage.log(worker).splitlines() if "its code still runs" in line]
    assert len(lines) == 2
    assert id in lines[1]
    assert worker.poll() is None


async def test_a_cancel_frees_the_slot_of_code_that_ignores_it(
    stage: WorkerStage, client: Client
) -> None:
    start(stage, concurrency="1")
    id = await client.submit(tasks.swallows, timeout=600)
    await client.reaches(id, State.RUNNING)
    await client.queue.cancel(id)
    assert (await client.end(id)).state is State.CANCELLED
    assert await client.result(await client.submit(tasks.good_async, 5)) == 5


async def test_a_worker_with_too_many_zombies_drains_and_ends(
    stage: WorkerStage, client: Client
) -> None:
    worker = start(stage, max_zombies="3", concurrency="10")
    await until_registered(client, 1)
    ids = [await client.submit(tasks.hangs) for _ in range(3)]
    for id in ids:
        assert (await client.error(id))["type"] == "timeout"
    assert await exit_code(worker) == 1
    assert "too much code ignored the end of its job" in stage.log(worker)
    assert not await client.queue.workers()


async def test_jobs_that_wait_for_a_process_are_not_charged(
    stage: WorkerStage, client: Client
) -> None:
    start(stage, concurrency="20")
    ids = [await client.submit(tasks.good_cpu, number) for number in range(12)]
    assert [await client.result(id) for id in ids] == list(range(12))
    for id in ids:
        assert {*outcomes(await client.record(id))} <= {"released", "succeeded"}


@pytest.mark.parametrize("payload", ["direct", "nested", "thread"])
async def test_a_keyboard_interrupt_in_code_fails_its_job_alone(
    stage: WorkerStage, client: Client, payload: str
) -> None:
    worker = start(stage)
    function = tasks.interrupts_thread if payload == "thread" else tasks.interrupts
    for _ in range(2):
        given = {} if payload == "thread" else payload
        error = await client.error(await client.submit(function, given))
        assert error["type"] == "exception:KeyboardInterrupt"
    assert await client.result(await client.submit(tasks.good_async, 1)) == 1
    assert worker.poll() is None


async def test_a_hangup_drains_as_sigterm_does(stage: WorkerStage, client: Client) -> None:
    worker = start(stage)
    await until_registered(client, 1)
    ids = [await client.submit(tasks.good_async, number) for number in range(50)]
    worker.send_signal(signal.SIGHUP)
    assert await exit_code(worker) == 0
    start(stage)
    assert await asyncio.gather(*map(client.result, ids)) == list(range(50))


async def test_a_fleet_survives_a_spinning_a_swallowing_and_fifty_hanging_jobs(
    stage: WorkerStage, client: Client
) -> None:
    fleet = [start(stage, concurrency="20") for _ in range(3)]
    await until_registered(client, 3)
    bad = [await client.submit(tasks.spins), await client.submit(tasks.swallows)]
    bad += [await client.submit(tasks.hangs) for _ in range(50)]
    good = [
        await client.submit(function, number)
        for number in range(100)
        for function in (tasks.good_async, tasks.good_thread)
    ]

    async def all_succeeded() -> bool:
        for at, worker in enumerate(fleet):
            if worker.poll() is not None:  # as any supervisor does
                fleet[at] = start(stage, concurrency="20")
        await client.queue.tick()
        records = await client.queue.get_many(good)
        return all(record and record.state is State.SUCCEEDED for record in records)

    await eventually(all_succeeded, 120)
    for id in bad:
        assert (await client.error(id))["type"] == "timeout"
