"""Why a run ends before its code does: cancelled by a client, lease lost, timed out, shut down; told apart."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest

from tandem_shared.errors import Unavailable
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Claim
from tandem_shared.retry import RetryPolicy
from tandem_worker import task
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob
from tandem_worker.runtime.worker import Worker
from tests.conftest import eventually
from tests.worker.workers import Client, make_worker, outcomes, working

ONCE = RetryPolicy(max_attempts=1)


@dataclass
class Seen:
    """What the code of a test's task has met."""

    begun: list[int] = field(default_factory=list)  # attempts
    cancelled: list[int] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
async def seen() -> AsyncIterator[Seen]:
    seen = Seen()
    yield seen
    seen.go_on.set()  # or code that swallows everything would outlive its test


@pytest.fixture
def waits(seen: Seen) -> Callable[..., Any]:
    """A task that obeys, and otherwise ends when the test says so."""

    @task("waits", retry=ONCE)
    async def waits(job: Job) -> str:
        seen.begun.append(job.attempt)
        try:
            await seen.go_on.wait()
        except asyncio.CancelledError:
            seen.cancelled.append(job.attempt)
            raise
        return "done"

    return waits


@pytest.fixture
def deaf(seen: Seen) -> Callable[..., Any]:
    """A task that swallows every cancellation until the test lets it end."""

    @task("deaf", retry=ONCE)
    async def deaf(job: Job) -> str:
        seen.begun.append(job.attempt)
        while not seen.go_on.is_set():
            try:
                await seen.go_on.wait()
            except asyncio.CancelledError:
                seen.cancelled.append(job.attempt)
        return "done all the same"

    return deaf


async def take_away(client: Client, id: str) -> None:
    """The job's lease ends before its time, and somebody settles it: as if the worker had been silent for long."""

    async def settled() -> bool:
        if outcomes(await client.record(id))[0] == "worker_lost":
            return True
        await client.queue.tick()
        await client.redis.hset(
            f"{client.queue.prefix}clock", "grace", "0"
        )  # Redis has just been started, says its clock
        await client.redis.zadd(f"{client.queue.prefix}leases", {id: 1}, xx=True)
        await client.queue.tick()
        return False

    await eventually(settled)


# ---------------------------------------------------------------------------------------- cancelled


async def test_a_cancel_reaches_the_code(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, waits: Callable[..., Any]
) -> None:
    # The lease is so long that no heartbeat can have brought it: the worker's own bell has.
    async with working(redis_url, tmp_path, waits, lease=600) as worker:
        id = await client.submit(waits)
        await eventually(lambda: seen.begun)
        await client.queue.cancel(id)
        await eventually(lambda: seen.cancelled)
        assert (await client.end(id)).state is State.CANCELLED
        assert outcomes(await client.record(id)) == ["cancelled"]
        await eventually(lambda: not worker.runs)


async def test_a_cancel_that_the_bell_did_not_bring_comes_with_the_heartbeat(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, waits: Callable[..., Any]
) -> None:
    async with working(redis_url, tmp_path, waits) as worker:
        id = await client.submit(waits)
        await eventually(lambda: seen.begun)
        await client.redis.hset(f"{client.queue.prefix}job:{id}", "cancel", "1")
        await eventually(lambda: seen.cancelled)
        assert (await client.end(id)).state is State.CANCELLED
        await eventually(lambda: not worker.runs)


async def test_code_that_swallows_its_cancel_is_cancelled_whatever_it_returns(
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


async def test_a_cancel_holds_without_its_code(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, deaf: Callable[..., Any]
) -> None:
    async with working(redis_url, tmp_path, deaf) as worker:
        id = await client.submit(deaf)
        await eventually(lambda: seen.begun)
        await client.queue.cancel(id)
        assert (await client.end(id)).state is State.CANCELLED
        # The code goes on. Once its job is over it is told again, and what it returns at last is
        # nobody's.
        await eventually(lambda: len(seen.cancelled) == 2)
        assert worker.runs
        seen.go_on.set()
        await eventually(lambda: not worker.runs)
        assert (await client.record(id)).result is None
        assert (worker.jobs_complete, worker.slots.outcomes.unwritten) == (0, 0)


async def test_a_worker_settles_what_does_not_obey_its_cancel(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, deaf: Callable[..., Any]
) -> None:
    async with working(
        redis_url, tmp_path, deaf, concurrency=1
    ):  # so it claims nothing, which would settle too
        id = await client.submit(deaf)
        await eventually(lambda: seen.begun)
        await client.redis.hset(
            f"{client.queue.prefix}clock", "grace", "0"
        )  # as if ticks had gone on for long
        await client.queue.cancel(id)
        assert outcomes(await client.reaches(id, State.CANCELLED)) == ["cancelled"]
        seen.go_on.set()


async def test_what_was_said_before_a_cancel_is_kept(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen
) -> None:
    @task("says", retry=ONCE)
    async def says() -> AsyncIterator[int]:
        for number in range(500):
            yield number
        seen.begun.append(1)
        await asyncio.Event().wait()

    async with working(redis_url, tmp_path, says):
        id = await client.submit(says)
        await eventually(lambda: seen.begun)
        await client.queue.cancel(id)
        await client.end(id)
        assert await client.items(id) == list(range(500))


async def test_a_thread_that_is_cancelled_frees_its_job_and_learns_of_it(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    begun, told = threading.Event(), threading.Event()

    @task("thread", retry=ONCE)
    def thread(job: SyncJob) -> None:
        begun.set()
        while not job.cancelled:
            told.wait(0.01)
        told.set()

    async with working(redis_url, tmp_path, thread):
        id = await client.submit(thread)
        await eventually(begun.is_set)
        await client.queue.cancel(id)
        assert (await client.end(id)).state is State.CANCELLED
        await eventually(told.is_set)


# --------------------------------------------------------------------------------------------- lost


async def test_a_worker_that_lost_a_job_says_nothing_of_it_any_more(
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
        # Too late, all of it: the job is not this attempt's any more.
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


async def test_a_job_comes_back_to_the_worker_that_lost_it(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, deaf: Callable[..., Any]
) -> None:
    async with working(redis_url, tmp_path, deaf) as worker:
        id = await client.submit(deaf, retry={"max_attempts": 3})
        await eventually(lambda: seen.begun == [1])
        await take_away(client, id)
        await eventually(lambda: seen.begun == [1, 2])
        seen.go_on.set()
        assert await client.result(id) == "done all the same"
        assert outcomes(await client.record(id)) == ["worker_lost", "succeeded"]
        await eventually(lambda: not worker.runs and not worker.slots.outcomes.unwritten)
        assert worker.jobs_complete == 1
        assert not worker.control.heartbeat.held


async def test_code_that_cannot_be_stopped_does_not_keep_its_job(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, deaf: Callable[..., Any]
) -> None:
    async with working(redis_url, tmp_path, deaf) as worker:
        id = await client.submit(deaf, timeout=0.05)
        error = await client.error(id)  # its lease is not renewed beyond timeout and grace
        assert error["type"] == "worker_lost"
        assert worker.runs
        seen.go_on.set()
        await eventually(lambda: not worker.runs)


# ----------------------------------------------------------------------------------------- shutdown


async def test_shutdown_hands_back_at_once_and_charges_nothing(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, waits: Callable[..., Any]
) -> None:
    async with working(redis_url, tmp_path, waits, drain=0):
        id = await client.submit(waits)
        await eventually(lambda: seen.begun)
    record = await client.record(id)
    assert (record.state, record.attempt, outcomes(record)) == (State.QUEUED, 0, ["released"])
    assert seen.cancelled == [1]
    seen.go_on.set()
    async with working(redis_url, tmp_path, waits):
        assert await client.result(id) == "done"
    assert seen.begun == [1, 1]


async def test_shutdown_lets_running_jobs_end_and_takes_no_more(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, waits: Callable[..., Any]
) -> None:
    async with working(redis_url, tmp_path, waits, drain=30) as worker:
        id = await client.submit(waits)
        await eventually(lambda: seen.begun)
        worker.handle_sig(SIGTERM)
        (info,) = await eventually(lambda: draining(client))
        assert info.running == (id,)
        later = await client.submit(waits)
        seen.go_on.set()
        assert await client.result(id) == "done"
    assert outcomes(await client.record(id)) == ["succeeded"]
    assert (await client.record(later)).state is State.QUEUED


async def draining(client: Client) -> list[Any]:
    return [info for info in await client.queue.workers() if info.draining]


async def test_a_second_signal_hurries(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, waits: Callable[..., Any]
) -> None:
    async with working(redis_url, tmp_path, waits, drain=3600) as worker:
        id = await client.submit(waits)
        await eventually(lambda: seen.begun)
        worker.handle_sig(SIGTERM)
        await eventually(lambda: draining(client))
        assert not seen.cancelled
        worker.handle_sig(SIGTERM)
        await eventually(lambda: seen.cancelled)
    assert outcomes(await client.record(id)) == ["released"]


async def test_jobs_whose_code_does_not_obey_are_handed_back_all_the_same(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, deaf: Callable[..., Any]
) -> None:
    async with working(redis_url, tmp_path, deaf, drain=0):
        id = await client.submit(deaf)
        await eventually(lambda: seen.begun)
    record = await client.record(id)
    assert (record.state, record.attempt, outcomes(record)) == (State.QUEUED, 0, ["released"])
    seen.go_on.set()
    async with working(redis_url, tmp_path, deaf):
        assert await client.result(id) == "done all the same"


async def test_code_that_falls_over_its_shutdown_is_not_charged(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen
) -> None:
    @task("falls", retry=ONCE)
    async def falls() -> None:
        try:
            seen.begun.append(1)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("connection closed") from None

    async with working(redis_url, tmp_path, falls, drain=0):
        id = await client.submit(falls)
        await eventually(lambda: seen.begun)
    assert outcomes(await client.record(id)) == ["released"]


async def test_a_worker_whose_task_is_cancelled_hands_back_too(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, waits: Callable[..., Any]
) -> None:
    worker = make_worker(redis_url, tmp_path, waits, drain=3600)
    running = asyncio.create_task(worker.async_run())
    try:
        id = await client.submit(waits)
        await eventually(lambda: seen.begun)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert outcomes(await client.record(id)) == ["released"]
        assert await client.queue.workers() == []
    finally:
        await worker.close()


async def test_jobs_of_a_claim_whose_answer_was_lost_are_handed_back(
    client: Client, redis_url: str, tmp_path: Path, seen: Seen, waits: Callable[..., Any]
) -> None:
    worker: Worker = make_worker(redis_url, tmp_path, waits)
    claim = worker.queue.claim

    async def deliver_none(*args: Any, **given: Any) -> Claim:
        answer = await claim(*args, **given)
        if given["slots"] and answer.jobs:
            worker.handle_sig(SIGTERM)
            raise Unavailable("the answer was lost")
        return answer

    worker.queue.claim = deliver_none  # type: ignore[method-assign] # the loss of an answer has no other seam
    running = asyncio.create_task(worker.async_run())
    try:
        id = await client.submit(waits)
        await running
        record = await client.record(id)
        assert (record.state, record.attempt, outcomes(record)) == (State.QUEUED, 0, ["released"])
        assert not seen.begun
    finally:
        await worker.close()
