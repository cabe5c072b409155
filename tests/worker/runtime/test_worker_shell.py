"""What a worker takes from arq's shell: burst mode, hooks, cron; and its start and end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
from arq import cron
from redis.asyncio import Redis

from tandem_shared.jobs.states import State
from tandem_shared.retry_policy import RetryPolicy
from tandem_worker import task
from tandem_worker.errors import Permanent
from tandem_worker.jobs.job import Job
from tandem_worker.resources import Resources
from tandem_worker.runtime.worker import Worker
from tests.conftest import eventually
from tests.worker.workers import Client, make_worker, outcomes, working

AT_ONCE = RetryPolicy(max_attempts=3, base=0.01, jitter=False)
EVERY_SECOND = set(range(60))


@task("number")
async def number(payload: int) -> int:
    return payload


async def burst(worker: Worker) -> None:
    try:
        await asyncio.wait_for(worker.async_run(), 30)
    finally:
        await worker.close()


async def test_a_burst_ends_when_all_jobs_are_done(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    @task("flaky", retry=AT_ONCE)
    async def flaky(job: Job) -> int:
        if job.attempt < 3:
            raise ValueError
        return job.attempt

    ids = [await client.submit(number, n) for n in range(250)]
    ids += [await client.submit(flaky), await client.submit(number, 0, delay=0.2)]
    await burst(make_worker(redis_url, tmp_path, number, flaky, burst=True, concurrency=10))
    assert {(await client.record(id)).state for id in ids} == {State.SUCCEEDED}


async def test_a_burst_waits_for_long_jobs(client: Client, redis_url: str, tmp_path: Path) -> None:
    @task("long")
    async def long() -> str:
        await asyncio.sleep(0.3)
        return "done"

    id = await client.submit(long)
    await burst(make_worker(redis_url, tmp_path, long, burst=True, max_burst_jobs=1, drain=0))
    assert await client.result(id) == "done"


async def test_a_burst_runs_at_most_max_burst_jobs(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    ids = [await client.submit(number, n) for n in range(20)]
    worker = make_worker(redis_url, tmp_path, number, burst=True, max_burst_jobs=7)
    assert await run_check(worker) == 7
    states = [(await client.record(id)).state for id in ids]
    assert states == [State.SUCCEEDED] * 7 + [State.QUEUED] * 13


async def run_check(worker: Worker) -> int:
    try:
        return await asyncio.wait_for(worker.run_check(), 30)
    finally:
        await worker.close()


async def test_a_burst_without_jobs_ends(client: Client, redis_url: str, tmp_path: Path) -> None:
    await burst(make_worker(redis_url, tmp_path, number, burst=True, max_burst_jobs=0))
    await burst(make_worker(redis_url, tmp_path, number, burst=True))


async def test_a_signal_ends_a_burst(client: Client, redis_url: str, tmp_path: Path) -> None:
    begun = asyncio.Event()

    @task("endless")
    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    id = await client.submit(endless)
    worker = make_worker(redis_url, tmp_path, endless, burst=True, max_burst_jobs=1, drain=0)
    running = asyncio.create_task(burst(worker))
    await eventually(begun.is_set)
    worker.handle_sig(SIGTERM)
    await running
    assert outcomes(await client.record(id)) == ["released"]


async def test_hooks_are_called_around_each_job(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    calls: list[Any] = []

    def hook(name: str) -> Any:
        async def call(ctx: dict[Any, Any]) -> None:
            calls.append((name, ctx.get("job_id"), ctx.get("job_try")))
            assert await ctx["redis"].ping()
            assert ctx["mine"] == 1

        return call

    names = ("on_startup", "on_job_start", "on_job_end", "after_job_end", "on_shutdown")
    async with working(
        redis_url, tmp_path, number, ctx={"mine": 1}, **{name: hook(name) for name in names}
    ):
        id = await client.submit(number, 5)
        assert await client.result(id) == 5
    assert calls == [
        ("on_startup", None, None),
        *((name, id, 1) for name in names[1:4]),
        ("on_shutdown", None, None),
    ]


@pytest.mark.parametrize("name", ["on_job_start", "on_job_end", "after_job_end"])
async def test_a_failing_hook_does_not_affect_the_job(
    client: Client, redis_url: str, tmp_path: Path, name: str
) -> None:
    async def fails(ctx: dict[Any, Any]) -> None:
        raise RuntimeError("a hook")

    async with working(redis_url, tmp_path, number, **{name: fails}):
        for n in range(3):
            id = await client.submit(number, n)
            assert await client.result(id) == n
            assert outcomes(await client.record(id)) == ["succeeded"]


async def test_a_finished_job_stays_finished_when_a_hook_is_interrupted(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    begun = asyncio.Event()

    async def hangs(ctx: dict[Any, Any]) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with working(redis_url, tmp_path, number, on_job_end=hangs):
        id = await client.submit(number, 5)
        await eventually(begun.is_set)
    assert await client.result(id) == 5


async def test_a_failed_start_ends_the_worker_and_closes_its_resources(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    calls: list[str] = []

    async def fails(ctx: dict[Any, Any]) -> None:
        raise RuntimeError("no start")

    async def ended(ctx: dict[Any, Any]) -> None:
        calls.append("on_shutdown")

    worker = make_worker(redis_url, tmp_path, number, on_startup=fails, on_shutdown=ended)
    opened = worker._resources

    @asynccontextmanager
    async def watched() -> AsyncIterator[Resources]:
        async with opened() as resources:
            try:
                yield resources
            finally:
                calls.append("resources")

    worker._resources = watched
    with pytest.raises(RuntimeError, match="no start"):
        await worker.async_run()
    await worker.close()
    assert calls == ["resources", "on_shutdown"]
    assert await client.queue.workers() == []


@pytest.mark.parametrize("turns", range(12))
async def test_a_cancellation_ends_a_worker_at_any_moment(
    client: Client, redis_url: str, tmp_path: Path, turns: int
) -> None:
    worker = make_worker(redis_url, tmp_path, number)
    running = asyncio.create_task(worker.async_run())
    try:
        await worker.ready.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(running), 10)
    finally:
        await worker.close()


async def test_a_cron_job_is_enqueued_adopted_and_run(
    client: Client, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    ticks: list[Any] = []

    async def tick(ctx: dict[Any, Any]) -> str:
        ticks.append((ctx["mine"], ctx["job_try"], len(ctx["job_id"])))
        return "ticked"

    every = cron(tick, name="cron:tick", second=EVERY_SECOND, run_at_startup=True)
    async with working(redis_url, tmp_path, number, cron_jobs=[every], ctx={"mine": 1}) as worker:
        await eventually(lambda: len(ticks) >= 2)
        assert set(ticks) == {(1, 1, 22)}
        await eventually(lambda: worker.jobs_complete >= 2)
        # Cron jobs are not published.
        assert [entry.name for entry in await client.queue.catalogue_entries()] == ["number"]
    await assert_only_our_own_keys(redis)


async def test_a_failed_cron_job_is_not_retried_and_runs_again_at_the_next_tick(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    ticks: list[int] = []

    async def tick(ctx: dict[Any, Any]) -> None:
        ticks.append(ctx["job_try"])
        raise Permanent("no_way", "no")

    every = cron(tick, name="cron:fails", second=EVERY_SECOND)
    async with working(redis_url, tmp_path, cron_jobs=[every]) as worker:
        await eventually(lambda: len(ticks) >= 2)
        await eventually(lambda: worker.jobs_failed >= 2)
    assert set(ticks) == {1}


async def test_a_cron_job_with_a_fixed_id_runs_at_each_tick(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    ticks: list[str] = []

    async def tick(ctx: dict[Any, Any]) -> None:
        ticks.append(ctx["job_id"])

    every = cron(tick, name="cron:fixed", second=EVERY_SECOND, job_id="always-the-same")
    async with working(redis_url, tmp_path, cron_jobs=[every]):
        await eventually(lambda: len(set(ticks)) >= 2)


async def test_two_workers_run_a_tick_once(
    client: Client, redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    ticks: list[str] = []

    async def tick(ctx: dict[Any, Any]) -> None:
        ticks.append(ctx["job_id"])

    def every() -> Any:
        return cron(tick, name="cron:tick", second=EVERY_SECOND)

    async with (
        working(redis_url, tmp_path, cron_jobs=[every()]) as one,
        working(redis_url, tmp_path, cron_jobs=[every()]) as two,
    ):
        await eventually(lambda: one.jobs_complete + two.jobs_complete >= 2)
    # One key per tick, whichever worker enqueued or adopted it. The newest tick may not be due yet.
    keys = await redis.keys(f"{client.queue.prefix}idem:*")
    assert len(keys) - 2 <= len(ticks) <= len(keys)
    assert len(set(ticks)) == len(ticks)


async def assert_only_our_own_keys(redis: Redis) -> None:
    """Without the keys that arq's own loop leaves: arq:in-progress:…, arq:retry:…, arq:result:…."""
    keys = {key.decode() for key in await redis.keys("*")}
    foreign = {key for key in keys if not key.startswith("tandem:{a}:")}
    assert {key for key in foreign if not key.startswith("arq:job:")} <= {
        "arq:queue",
        "arq:queue:health-check",
    }
