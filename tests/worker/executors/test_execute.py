"""Running tasks on the loop and in threads: streaming, cancelling, failing; errors with advice."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tandem_worker import task
from tandem_worker.errors import Permanent, Retry, TaskError
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob
from tandem_worker.testing import Recorder, run
from tests.conftest import eventually


@pytest.mark.parametrize(
    "type_", ["Card Declined", "", "card-declined", "exception:", "exception:a b", "9lives", "_a"]
)
def test_an_error_type_is_a_lower_case_word(type_: str) -> None:
    with pytest.raises(ValueError, match="is not an error type"):
        Permanent(type_, "no")


def test_errors_carry_advice_on_retrying() -> None:
    assert (Retry(after="1m").after, Retry(after=0.5).after, Retry().after) == (60, 0.5, None)
    assert (Retry().type, Retry().retryable, str(Retry(message="later"))) == (
        "retry",
        True,
        "later",
    )
    assert (Permanent("card_declined", "no").retryable, str(Permanent("card_declined", "no"))) == (
        False,
        "no",
    )
    assert isinstance(Retry(), TaskError)
    with pytest.raises(ValueError, match="is not a duration"):
        Retry(after="soon")


async def test_items_of_a_generator_are_output() -> None:
    @task("a")
    async def stream(payload: int) -> AsyncIterator[Any]:
        for number in range(payload):
            yield {"n": number}

    @task("b")
    def threaded(job: SyncJob, payload: int) -> Iterator[Any]:
        for number in range(payload):
            job.progress(number)
            yield {"n": number}

    for function in (stream, threaded):
        seen = Recorder()
        assert await run(function, 1000, sink=seen) is None
        assert seen.items == [{"n": number} for number in range(1000)]


async def test_a_cancelled_task_gets_a_cancelled_error_and_its_job_is_marked() -> None:
    jobs: list[Job] = []
    ends: list[str] = []

    @task("a")
    async def waits(job: Job) -> None:
        jobs.append(job)
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("async")

    @task("b")
    async def streams(job: Job) -> AsyncIterator[int]:
        try:
            jobs.append(job)
            yield 1
            await asyncio.Event().wait()
        finally:
            ends.append("stream")

    for function in (waits, streams):
        running = asyncio.create_task(run(function))
        await eventually(lambda: jobs)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert jobs.pop().cancelled
    assert ends == ["async", "stream"]


async def test_a_cancelled_thread_is_abandoned_and_ends_at_its_next_report() -> None:
    started, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    after: list[BaseException] = []
    seen = Recorder()

    @task("blocked")
    def blocked(job: SyncJob) -> None:
        job.emit("before")
        started.set()
        go_on.wait()
        try:
            assert job.cancelled
            job.emit("after")
        except asyncio.CancelledError as error:
            after.append(error)
        finally:
            ended.set()

    running = asyncio.create_task(run(blocked, sink=seen))
    await eventually(started.is_set)
    await eventually(lambda: seen.items)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running  # while the thread still waits
    assert not ended.is_set()
    go_on.set()
    await eventually(ended.is_set)
    assert len(after) == 1
    assert seen.items == ["before"]


async def test_code_that_cancels_or_exits_fails_like_any_other() -> None:
    @task("a")
    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    @task("b")
    async def exits() -> None:
        sys.exit(3)

    @task("c")
    def thread_exits() -> None:
        sys.exit(3)

    @task("d")
    def thread_stops() -> None:
        raise StopIteration

    @task("e")
    def thread_cancels() -> None:
        raise asyncio.CancelledError

    async with asyncio.timeout(10):
        for function, name in (
            (cancels_itself, "CancelledError"), (exits, "SystemExit"), (thread_exits, "SystemExit"),
            (thread_stops, "StopIteration"), (thread_cancels, "CancelledError"),
        ):  # fmt: skip
            with pytest.raises(TaskError) as caught:
                await run(function)
            assert (caught.value.type, caught.value.retryable) == (f"exception:{name}", True)


async def test_exceptions_are_raised_unchanged() -> None:
    @task("a")
    def thread() -> None:
        raise KeyError("missing")

    @task("b")
    async def coroutine() -> None:
        raise KeyError("missing")

    for function in (thread, coroutine):
        with pytest.raises(KeyError, match="missing"):
            await run(function)


async def test_a_timeout_applies_in_tests_too() -> None:
    @task("slow", timeout="10ms")
    async def slow() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await run(slow)
