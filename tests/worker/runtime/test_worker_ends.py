"""Runs that are interrupted: cancelled by a client, or with a lost lease."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tandem_shared.jobs.states import State
from tandem_worker import task
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob
from tests.conftest import eventually
from tests.worker.runtime.conftest import ONCE, Seen
from tests.worker.workers import Client, outcomes, working


async def take_away(client: Client, id: str) -> None:
    """End the job's lease early and settle it, as if the worker had been silent for long."""

    async def settled() -> bool:
        if outcomes(await client.record(id))[0] == "worker_lost":
            return True
        await client.queue.tick()
        # No grace period after the start of Redis.
        await client.redis.hset(f"{client.queue.prefix}clock", "grace", "0")
        await client.redis.zadd(f"{client.queue.prefix}leases", {id: 1}, xx=True)
        await client.queue.tick()
        return False

    await eventually(settled)


async def test_a_cancel_reaches_the_code(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, waits: Callable[..., Any]
) -> None:
    # The lease is too long for a heartbeat to bring it: the worker's own bell does.
    async with working(redis_url, tmp_path, waits, lease=600) as worker:
        id = await client.submit(waits)
        await eventually(lambda: seen.begun)
        await client.queue.cancel(id)
        await eventually(lambda: seen.cancelled)
        assert (await client.end(id)).state is State.CANCELLED
        assert outcomes(await client.record(id)) == ["cancelled"]
        await eventually(lambda: not worker.runs)


async def test_a_cancel_that_missed_the_bell_comes_with_the_heartbeat(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, waits: Callable[..., Any]
) -> None:
    async with working(redis_url, tmp_path, waits) as worker:
        id = await client.submit(waits)
        await eventually(lambda: seen.begun)
        await client.redis.hset(f"{client.queue.prefix}job:{id}", "cancel", "1")
        await eventually(lambda: seen.cancelled)
        assert (await client.end(id)).state is State.CANCELLED
        await eventually(lambda: not worker.runs)


async def test_code_that_swallows_its_cancel_is_cancelled_all_the_same(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen
) -> None:
    @task("swallows", retry=ONCE)
    async def swallows(payload: str) -> str:
        try:
            seen.begun.append(1)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.cancelled.append(1)
            if payload == "raises":
                raise ValueError from None
        return "done"

    async with working(redis_url, tmp_path, swallows) as worker:
        for way in ("returns", "raises"):
            seen.begun.clear()
            id = await client.submit(swallows, way)
            await eventually(lambda: seen.begun)
            await client.queue.cancel(id)
            assert (await client.end(id)).state is State.CANCELLED
            await eventually(lambda: not worker.runs)
        assert (worker.jobs_complete, worker.jobs_failed, len(seen.cancelled)) == (0, 0, 2)


async def test_a_cancel_does_not_need_its_code(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, stubborn: Callable[..., Any]
) -> None:
    async with working(redis_url, tmp_path, stubborn) as worker:
        id = await client.submit(stubborn)
        await eventually(lambda: seen.begun)
        await client.queue.cancel(id)
        assert (await client.end(id)).state is State.CANCELLED
        # The code continues. It is cancelled again once its job is over, and its result is dropped.
        await eventually(lambda: len(seen.cancelled) == 2)
        assert not worker.runs
        assert len(worker.zombies) == 1
        seen.go_on.set()
        await eventually(lambda: not worker.zombies)
        assert (await client.record(id)).result is None
        assert (worker.jobs_complete, worker.slots.outcomes.unwritten) == (0, 0)


async def test_a_worker_settles_jobs_that_ignore_their_cancel(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, stubborn: Callable[..., Any]
) -> None:
    # Without a free slot it claims nothing, which would settle the job too.
    async with working(redis_url, tmp_path, stubborn, concurrency=1):
        id = await client.submit(stubborn)
        await eventually(lambda: seen.begun)
        # No grace period, as if Redis had been running for long.
        await client.redis.hset(f"{client.queue.prefix}clock", "grace", "0")
        await client.queue.cancel(id)
        assert outcomes(await client.reaches(id, State.CANCELLED)) == ["cancelled"]
        seen.go_on.set()


async def test_output_from_before_a_cancel_is_kept(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen
) -> None:
    @task("chatty", retry=ONCE)
    async def chatty() -> AsyncIterator[int]:
        for number in range(500):
            yield number
        seen.begun.append(1)
        await asyncio.Event().wait()

    async with working(redis_url, tmp_path, chatty):
        id = await client.submit(chatty)
        await eventually(lambda: seen.begun)
        await client.queue.cancel(id)
        await client.end(id)
        assert await client.items(id) == list(range(500))


async def test_a_cancelled_thread_frees_its_job_and_can_notice_it(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    begun, noticed = threading.Event(), threading.Event()

    @task("thread", retry=ONCE)
    def thread(job: SyncJob) -> None:
        begun.set()
        while not job.cancelled:
            noticed.wait(0.01)
        noticed.set()

    async with working(redis_url, tmp_path, thread):
        id = await client.submit(thread)
        await eventually(begun.is_set)
        await client.queue.cancel(id)
        assert (await client.end(id)).state is State.CANCELLED
        await eventually(noticed.is_set)


async def test_a_worker_that_lost_a_job_reports_nothing_more_about_it(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen
) -> None:
    first = asyncio.Event()

    @task("talks")
    async def talks(job: Job) -> str:
        seen.begun.append(job.attempt)
        if job.attempt > 1:
            await seen.go_on.wait()
            return "second"
        try:
            await first.wait()
        except asyncio.CancelledError:
            seen.cancelled.append(job.attempt)
        # All of it too late: the attempt has lost the job.
        await job.progress(9)
        await job.emit("late")
        job.log.info("late")
        return "first"

    async with (
        working(redis_url, tmp_path, talks, queues="none") as other,
        working(redis_url, tmp_path, talks),
    ):
        id = await client.submit(talks)
        await eventually(lambda: seen.begun == [1])
        await take_away(client, id)
        await eventually(lambda: seen.cancelled == [1] and seen.begun == [1, 2])
        seen.go_on.set()
        assert await client.result(id) == "second"
        record = await client.record(id)
        assert outcomes(record) == ["worker_lost", "succeeded"]
        assert record.progress is None
        assert await client.items(id) == []
        assert await client.items(id, "log") == []
        assert other.jobs_complete == 0


async def test_a_job_may_return_to_the_worker_that_lost_it(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, stubborn: Callable[..., Any]
) -> None:
    async with working(redis_url, tmp_path, stubborn) as worker:
        id = await client.submit(stubborn, retry={"max_attempts": 3})
        await eventually(lambda: seen.begun == [1])
        await take_away(client, id)
        await eventually(lambda: seen.begun == [1, 2])
        seen.go_on.set()
        assert await client.result(id) == "done all the same"
        assert outcomes(await client.record(id)) == ["worker_lost", "succeeded"]
        await eventually(lambda: not worker.runs and not worker.slots.outcomes.unwritten)
        assert worker.jobs_complete == 1
        assert not worker.control.heartbeat.held


async def test_code_that_ignores_cancellation_does_not_keep_its_job(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, stubborn: Callable[..., Any]
) -> None:
    async with working(redis_url, tmp_path, stubborn) as worker:
        id = await client.submit(stubborn, timeout=0.05)
        error = await client.error(id)
        assert error["type"] == "timeout"
        assert error["message"].endswith("and its code ignored that")
        assert outcomes(await client.record(id)) == ["timeout"]
        assert not worker.runs
        assert len(worker.zombies) == 1
        seen.go_on.set()
        await eventually(lambda: not worker.zombies)
