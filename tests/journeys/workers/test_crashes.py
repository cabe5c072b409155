"""Accepted jobs while workers and Redis are killed, stopped and started again."""

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import psutil

from tandem_shared.backoff import until_available
from tandem_shared.errors import Unavailable
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Submission
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Finish, Report
from tests.chaos.relay import Relay
from tests.conftest import eventually
from tests.journeys.stage import LEASE_SECONDS, RETRY, WorkerStage, exit_code, until_registered
from tests.journeys.tasks import crash_tasks as tasks
from tests.worker.workers import Client, open_client, outcomes


def submit_many(
    client: Client, function: Callable[..., Any], stage: WorkerStage, count: int
) -> Any:
    return asyncio.gather(
        *(client.submit(function, stage.scene, retry=RETRY) for _ in range(count))
    )


async def test_jobs_of_a_killed_worker_start_again_and_its_outcomes_are_refused(
    stage: WorkerStage, client: Client
) -> None:
    first = stage.worker()
    ids = await submit_many(client, tasks.waits, stage, 3)
    await eventually(lambda: len(stage.notes("begun")) == 3, 30)
    second = stage.worker()
    await until_registered(client, 2)
    first.kill()
    await eventually(lambda: second.pid in stage.pids("begun"), 30)
    stage.go()
    for id in ids:
        assert await client.result(id) == second.pid
        record = await client.record(id)
        assert outcomes(record) == ["worker_lost", "succeeded"]
        old = record.attempts[0]
        late = Finish(id, f"{old.began}.{old.worker}", State.SUCCEEDED, "succeeded", b'"late"')
        assert await client.queue.finish([late]) == ["lost"]
        assert await client.result(id) == second.pid


async def test_the_outcome_of_a_worker_that_slept_through_its_lease_is_refused(
    stage: WorkerStage, client: Client
) -> None:
    sleeper = stage.worker()
    (id,) = await submit_many(client, tasks.deaf, stage, 1)
    await eventually(lambda: stage.pids("begun") == {sleeper.pid}, 30)
    other = stage.worker()
    await until_registered(client, 2)
    sleeper.send_signal(signal.SIGSTOP)
    await eventually(lambda: other.pid in stage.pids("begun"), 30)
    stage.go()
    assert await client.result(id) == other.pid
    sleeper.send_signal(signal.SIGCONT)
    await eventually(lambda: sleeper.pid in stage.pids("ended"))
    # The zombie's code has ended too; its outcome is refused, and it keeps working.
    other.send_signal(signal.SIGTERM)
    assert await exit_code(other) == 0
    again = await client.submit(tasks.waits, stage.scene)
    assert await client.result(again) == sleeper.pid
    assert await client.result(id) == other.pid
    assert outcomes(await client.record(id)) == ["worker_lost", "succeeded"]


async def test_a_pause_beyond_the_lease_costs_one_loss_and_stops_no_later_attempt(
    stage: WorkerStage, client: Client
) -> None:
    """The only worker has free slots, so it claims the same jobs again when it goes on.

    Its connection is slow: what it hears of its old attempts comes after it began the new ones.
    """
    relay = Relay(partial(asyncio.open_unix_connection, str(stage.directory / "redis.sock")))
    await relay.start()
    relay.delay = 0.02
    try:
        sleeper = stage.worker(redis_url=f"redis://127.0.0.1:{relay.port}/0", concurrency="100")
        ids = await submit_many(client, tasks.waits, stage, 50)
        await eventually(lambda: len(stage.notes("begun")) == 50, 30)
        sleeper.send_signal(signal.SIGSTOP)

        async def lined_up() -> bool:
            await client.queue.tick()
            return {(await client.record(id)).state for id in ids} == {State.QUEUED}

        await eventually(lined_up, 30)
        sleeper.send_signal(signal.SIGCONT)
        await eventually(lambda: len(stage.notes("begun")) == 100, 30)
        for id in ids:
            record = await client.record(id)
            token = f"{record.attempts[0].began}.{record.attempts[0].worker}"
            report = Report(id, token, 1, "progress", b"{}")
            answers = await client.queue.report([report], limit=1 << 20)
            assert [answer.word for answer in answers] == ["lost"]
            end = Finish(id, token, State.FAILED, "failed", b"{}")
            assert await client.queue.finish([end]) == ["lost"]
            assert await client.record(id) == record
        # Three heartbeats of the new attempts, whatever was late of the old ones.
        for _ in range(3):
            renewed = partial(_are_renewed, client, ids, await _lease_ends(client, ids))
            await eventually(renewed, 30)
        stage.go()
        for id in ids:
            assert await client.result(id) == sleeper.pid
            assert outcomes(await client.record(id)) == ["worker_lost", "succeeded"]
    finally:
        await relay.close()


async def _lease_ends(client: Client, ids: list[str]) -> dict[str, float]:
    ends = dict(await client.redis.zrange(f"{client.queue.prefix}leases", 0, -1, withscores=True))
    return {id: ends[id.encode()] for id in ids}


async def _are_renewed(client: Client, ids: list[str], seen: dict[str, float]) -> bool:
    now = await _lease_ends(client, ids)
    return all(now[id] > seen[id] for id in ids)


async def test_a_poison_job_fails_and_no_other_job_does(stage: WorkerStage, client: Client) -> None:
    poison = await client.submit(tasks.exits, stage.scene, retry=RETRY)
    others = await submit_many(client, tasks.waits, stage, 4)
    stop = asyncio.Event()

    async def keep_one_alive() -> int:
        """The number of deaths."""
        deaths = 0
        while not stop.is_set():
            process = stage.worker()
            while process.poll() is None and not stop.is_set():
                await asyncio.sleep(0.05)
            deaths += process.poll() is not None
        return deaths

    supervisor = asyncio.create_task(keep_one_alive())
    error = await client.error(poison)
    assert (error["type"], error["attempt"]) == ("worker_lost", 3)
    assert outcomes(await client.record(poison)) == ["worker_lost"] * 3
    stage.go()
    for id in others:
        await client.result(id)
    stop.set()
    assert await supervisor == 3


async def test_sigterm_hands_a_long_job_back_without_counting_the_attempt(
    stage: WorkerStage, client: Client
) -> None:
    process = stage.worker(drain="0")
    (id,) = await submit_many(client, tasks.waits, stage, 1)
    await eventually(lambda: stage.notes("begun"), 30)
    process.send_signal(signal.SIGTERM)
    assert await exit_code(process) == 0
    record = await client.record(id)
    assert (record.state, record.attempt, outcomes(record)) == (State.QUEUED, 0, ["released"])
    assert await client.queue.workers() == []


async def test_sigterm_lets_short_jobs_end_and_a_second_one_does_not(
    stage: WorkerStage, client: Client
) -> None:
    first, second = stage.worker(drain="1h"), stage.worker(drain="1h", queues="other")
    short = await client.submit(tasks.waits, stage.scene)
    endless = {**stage.scene, "go": str(stage.directory / "never")}
    long = await client.submit(tasks.waits, endless, queue="other")
    await eventually(lambda: stage.pids("begun") == {first.pid, second.pid}, 30)
    for process in (first, second):
        process.send_signal(signal.SIGTERM)

    async def draining() -> bool:
        return [info.draining for info in await client.queue.workers()] == [True, True]

    await eventually(draining)
    stage.go()
    assert await exit_code(first) == 0
    assert outcomes(await client.record(short)) == ["succeeded"]
    assert second.poll() is None
    second.send_signal(signal.SIGTERM)
    assert await exit_code(second) == 0
    assert outcomes(await client.record(long)) == ["released"]


async def test_api_and_workers_survive_a_redis_that_is_killed_under_load(
    stage: WorkerStage, client: Client, redis_process: subprocess.Popen[bytes]
) -> None:
    workers = [stage.worker(), stage.worker()]
    await until_registered(client, 2)
    accepted: list[tuple[float, str]] = []
    stop = asyncio.Event()

    async def feed() -> None:
        while not stop.is_set():
            options = JobOptions(timeout=30, retry=RETRY)
            jobs = [
                Submission(id=new_id(), task="crash.quick", payload=b"1", options=options)
                for _ in range(50)
            ]
            try:
                answers = await client.queue.submit_many(jobs)
            except Unavailable:
                await asyncio.sleep(0.05)
                continue
            accepted.extend(
                (time.monotonic(), job.id) for job, _ in zip(jobs, answers, strict=True)
            )
            await asyncio.sleep(0.05)

    feeding = asyncio.create_task(feed())
    began = time.monotonic()
    # "everysec" keeps what is older than 2 s.
    await eventually(lambda: accepted and accepted[-1][0] > began + 2.5)
    killed = time.monotonic()
    redis_process.kill()
    await asyncio.to_thread(redis_process.wait, 10)
    before, dead = len(accepted), time.monotonic()
    await stage.start_redis()
    await eventually(lambda: len(accepted) > before + 100)
    stop.set()
    await feeding
    assert [process.poll() for process in workers] == [None, None]
    kept = [id for at, id in accepted if at < killed - 2 or at > dead]
    assert len(kept) > 200
    for id in kept:
        assert (await client.end(id)).state is State.SUCCEEDED


async def test_an_outcome_is_kept_until_redis_is_back(
    stage: WorkerStage, client: Client, redis_process: subprocess.Popen[bytes]
) -> None:
    # With "everysec" Redis may lose the claim, and the job would start again.
    await client.redis.config_set("appendfsync", "always")
    worker = stage.worker(lease="600")  # so long that the job gets no second attempt
    (id,) = await submit_many(client, tasks.waits, stage, 1)
    await eventually(lambda: stage.notes("begun"), 30)
    redis_process.kill()
    await asyncio.to_thread(redis_process.wait, 10)
    stage.go()
    await eventually(lambda: stage.notes("ended"))
    await eventually(lambda: "during=finish" in stage.log(worker))
    await stage.start_redis()
    assert await until_available(lambda: client.result(id)) == worker.pid
    assert len(stage.notes("begun")) == 1


async def test_leases_survive_a_redis_that_stalls(
    stage: WorkerStage, client: Client, redis_process: subprocess.Popen[bytes]
) -> None:
    stage.worker()
    stage.worker()
    await until_registered(client, 2)
    ids = await submit_many(client, tasks.waits, stage, 6)
    await eventually(lambda: len(stage.notes("begun")) == 6, 30)
    redis_process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(2.5 * LEASE_SECONDS)  # the fault itself
    redis_process.send_signal(signal.SIGCONT)
    later = await client.submit(tasks.quick, 1)
    assert await client.result(later) == 1
    stage.go()
    for id in ids:
        await client.result(id)
        assert outcomes(await client.record(id)) == ["succeeded"]


async def test_a_worker_that_starts_first_waits_for_redis(stage: WorkerStage) -> None:
    process = stage.worker()
    await eventually(lambda: "Redis is unavailable" in stage.log(process), 30)
    await stage.start_redis()
    async with open_client(stage.server.url, LEASE_SECONDS) as client:
        await until_registered(client, 1)
        assert await client.result(await client.submit(tasks.quick, 5)) == 5
    process.send_signal(signal.SIGTERM)
    assert await exit_code(process) == 0


async def test_a_worker_that_never_reached_redis_ends_on_sigterm(stage: WorkerStage) -> None:
    process = stage.worker()
    await eventually(lambda: "Redis is unavailable" in stage.log(process), 30)
    process.send_signal(signal.SIGTERM)
    assert await exit_code(process) == 0


async def test_a_blocked_loop_keeps_its_lease(stage: WorkerStage, client: Client) -> None:
    stage.worker()
    (id,) = await submit_many(client, tasks.blocks, stage, 1)
    await eventually(lambda: stage.notes("begun"), 30)
    stage.worker()  # takes over jobs whose lease has ended
    await until_registered(client, 2)
    assert await client.result(id) == 1
    assert outcomes(await client.record(id)) == ["succeeded"]


async def test_threads_and_processes_are_cancelled(stage: WorkerStage, client: Client) -> None:
    worker = stage.worker()
    ids = [await client.submit(function, stage.scene) for function in (tasks.thread, tasks.cpu)]
    await eventually(lambda: len(stage.pids("begun")) == 2, 30)
    (child,) = stage.pids("begun") - {worker.pid}
    for id in ids:
        await client.queue.cancel(id)
    for id in ids:
        assert (await client.end(id)).state is State.CANCELLED
    await eventually(lambda: stage.pids("cancelled") == {worker.pid, child})
    await eventually(lambda: not psutil.pid_exists(child))
    assert await client.result(await client.submit(tasks.quick, 5)) == 5
