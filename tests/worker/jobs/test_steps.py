"""`job.step`: run once per job, in the three kinds of code, with and without Redis."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tandem_shared.queue import steps as bounds
from tandem_shared.queue.steps import Step
from tandem_shared.retry_policy import RetryPolicy
from tandem_worker import task
from tandem_worker.errors import Permanent, Retry
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob
from tandem_worker.testing import Recorder, run
from tests.conftest import eventually
from tests.worker.jobs import step_tasks
from tests.worker.workers import Client, outcomes, working

QUICK = RetryPolicy(max_attempts=3, base="1ms", jitter=False)


class Bill(BaseModel):
    number: int
    due: date


@dataclass
class Pair:
    left: int
    right: str


async def bill(number: int) -> Bill:
    return Bill(number=number, due=date(2030, 1, number))


def pair(left: int, *, right: str) -> Pair:
    return Pair(left, right)


class Callee:
    """An object whose calls return an awaitable."""

    async def __call__(self, payload: int) -> tuple[int, str]:
        return payload, threading.current_thread().name


FUNCTIONS: list[tuple[Callable[..., Any], Any]] = [
    (partial(bill, 3), Bill(number=3, due=date(2030, 1, 3))),
    (partial(pair, 1, right="b"), Pair(1, "b")),
    (partial(Bill, number=1, due="2030-01-02"), Bill(number=1, due=date(2030, 1, 2))),
    (partial(Callee(), 1), (1, "MainThread")),
    (lambda: (1, {"a": None}), [1, {"a": None}]),  # without a return type: plain JSON
    (lambda: asyncio.sleep(0, (1,)), [1]),
    (partial(len, "abc"), 3),
]


@pytest.mark.parametrize(("function", "value"), FUNCTIONS)
async def test_a_step_returns_the_same_value_every_time(
    function: Callable[..., Any], value: Any
) -> None:
    got = []

    @task("t")
    async def once(job: Job) -> None:
        got.append(await job.step("one", function))

    seen = Recorder()
    for attempt in (1, 2):
        await run(once, sink=seen, attempt=attempt)
    assert got == [value, value]
    assert [type(one) for one in got] == [type(value)] * 2


async def test_a_step_runs_once() -> None:
    done: list[str] = []

    @task("t", retry=QUICK)
    async def steps(job: Job) -> str:
        await job.step("first", done.append, "first")
        if job.attempt == 1:
            raise Retry
        return await job.step("second", step_tasks.hello, "Ada", loud=True)

    seen = Recorder()
    with pytest.raises(Retry):
        await run(steps, sink=seen)
    assert await run(steps, sink=seen, attempt=2) == "Hello, ADA"
    assert done == ["first"]
    assert seen.steps == {"first": None, "second": "Hello, ADA"}


async def test_a_test_can_provide_the_results_of_an_earlier_attempt() -> None:
    @task("t")
    async def steps(job: Job) -> str:
        return await job.step("greet", step_tasks.hello, "Ada")

    assert await run(steps, sink=Recorder(steps={"greet": "as before"})) == "as before"


async def test_plain_functions_do_not_block_the_loop() -> None:
    go = threading.Event()

    def wait() -> str:
        assert go.wait(10)
        return threading.current_thread().name

    @task("t")
    async def waits(job: Job) -> str:
        name, _ = await asyncio.gather(
            job.step("wait", wait), job.step("go", asyncio.to_thread, go.set)
        )
        return name

    assert (await run(waits)).startswith("task-")


async def test_a_failed_step_stores_nothing_and_can_be_repeated() -> None:
    tries: list[int] = []

    def flaky() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("not yet")
        return len(tries)

    @task("t")
    async def stubborn(job: Job) -> int:
        while True:
            try:
                return await job.step("flaky", flaky)
            except ValueError:
                assert seen.steps == {}

    seen = Recorder()
    assert await run(stubborn, sink=seen) == 3


async def test_a_cancelled_step_stores_nothing_and_can_be_repeated() -> None:
    @task("t")
    async def impatient(job: Job) -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await job.step("slow", asyncio.Event().wait)
        return await job.step("slow", step_tasks.hello, "Ada")

    assert await run(impatient) == "Hello, Ada"


@pytest.mark.parametrize("together", [True, False])
async def test_a_name_can_be_used_once_per_attempt(together: bool) -> None:
    done: list[int] = []

    async def add(number: int) -> None:
        await asyncio.sleep(0)
        done.append(number)

    @task("t")
    async def loop(job: Job) -> None:
        if together:
            await asyncio.gather(*(job.step("add", add, number) for number in range(3)))
        for number in range(3):
            await job.step("add", add, number)

    with pytest.raises(Permanent, match="each needs a different name") as refused:
        await run(loop)
    assert refused.value.type == "step_repeated"
    await asyncio.sleep(0)
    assert done == [0]


async def test_invalid_steps_are_rejected() -> None:
    @task("t")
    async def wrong(job: Job, payload: str) -> None:
        coroutine = step_tasks.later()
        calls: dict[str, Callable[[], Any]] = {
            "called": lambda: job.step("a", coroutine),  # type: ignore[call-overload] # the mistake itself
            "name": lambda: job.step("", step_tasks.later),
            "long": lambda: job.step("n" * 201, step_tasks.later),
            "number": lambda: job.step(7, step_tasks.later),  # type: ignore[call-overload] # the mistake itself
            "foreign": lambda: job.step("a", object),
            "nan": lambda: job.step("a", float, "nan"),
            "liar": lambda: job.step("a", step_tasks.liar),
        }
        coroutine.close()
        assert await calls[payload]() is None, "it was accepted as a step"

    seen = Recorder()
    words = {
        "called": "takes a function and its arguments",
        "number": "the name of a step is a string",
        "foreign": "the result of the step 'a' is not JSON",
        "nan": "the result of the step 'a' is not JSON",
        "liar": "does not fit the return type",
    }
    for name, message in words.items():
        with pytest.raises(TypeError, match=message):
            await run(wrong, name, sink=seen)
    for name in ("name", "long"):
        with pytest.raises(ValueError, match="1 to 200 characters"):
            await run(wrong, name, sink=seen)
    assert seen.steps == {}


async def test_a_result_has_a_size_limit() -> None:
    @task("t")
    async def large(job: Job, payload: int) -> int:
        return len(await job.step("large", lambda: "x" * payload))

    assert await run(large, bounds.MAX_STEP_BYTES - 2) == bounds.MAX_STEP_BYTES - 2
    with pytest.raises(Permanent, match="the limit is 262144") as refused:
        await run(large, bounds.MAX_STEP_BYTES - 1)
    assert refused.value.type == "too_large"


@pytest.mark.parametrize("function", [step_tasks.plain, step_tasks.cpu])
async def test_def_code_has_steps_too(function: Callable[..., Any], tmp_path: Path) -> None:
    seen = Recorder()
    notes = tmp_path / "notes"
    for attempt in (1, 2):
        assert await run(function, {"notes": notes}, sink=seen, attempt=attempt) == [
            3,
            "2030-01-02",
            "Permanent",
        ]
    assert notes.read_text() == "add\nday\n"
    assert seen.steps == {"add": 3, "day": "2030-01-02"}


async def test_def_code_rejects_a_coroutine_function() -> None:
    @task("t")
    def plain(job: SyncJob) -> None:
        made = job.step("later", step_tasks.later)
        raise AssertionError(f"a step of plain code made {made}")

    with pytest.raises(TypeError, match="needs an async def task"):
        await run(plain)


@pytest.mark.parametrize("function", [step_tasks.asynchronous, step_tasks.plain, step_tasks.cpu])
async def test_a_later_attempt_continues_where_the_first_failed(
    function: Callable[..., Any], client: Client, redis_url: str, tmp_path: Path
) -> None:
    async with working(redis_url, tmp_path, function, lease=60.0):
        payload = {"notes": tmp_path / "notes", "fails": 2}
        id = await client.submit(function, payload, retry={"max_attempts": 3, "base": 0.001})
        assert await client.result(id) == [3, "2030-01-02", "Permanent"]
        assert outcomes(await client.record(id)) == ["failed", "failed", "succeeded"]

        async def fading() -> bool:
            """Whether the steps expire, as they do once the ledger has the job."""
            return int(await client.redis.pttl(f"{client.queue.prefix}steps:{id}")) > 0

        await eventually(fading)
    assert (tmp_path / "notes").read_text() == "add\nday\n"


async def test_too_many_steps_fail_the_job(
    client: Client, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MAX_JOB_STEPS", 50)

    @task("many")
    async def many(job: Job, payload: int) -> int:
        return sum(
            await asyncio.gather(
                *(job.step(f"step {number}", int, number) for number in range(payload))
            )
        )

    async with working(redis_url, tmp_path, many, lease=60.0):
        ids = [await client.submit(many, count) for count in (50, 51)]
        assert await client.result(ids[0]) == sum(range(50))
        assert (await client.error(ids[1]))["type"] == "too_large"


async def test_a_step_of_a_lost_attempt_is_not_stored_and_its_code_stops(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    begun, go, stopped = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @task("lost")
    async def lost(job: Job) -> int:
        if job.attempt > 1:
            return await job.step("one", int, 2)
        try:
            begun.set()
            await job.step("one", first)
        except asyncio.CancelledError:
            stopped.set()
            raise
        raise AssertionError("the code of a lost attempt continued")

    async def first() -> int:
        await go.wait()
        return 1

    async with working(redis_url, tmp_path, lost, concurrency=1) as worker:
        id = await client.submit(lost)
        await asyncio.wait_for(begun.wait(), 10)
        # As if the process had been suspended for longer than the lease.
        worker.control.heartbeat.held.clear()
        record = await client.record(id)
        await eventually(client.queue.tick)
        go.set()
        await asyncio.wait_for(stopped.wait(), 10)
        assert await client.result(id) == 2
        late = Step(id, f"{record.attempts[0].began}.{worker.id}", "two", b"1")
        assert (await client.queue.steps.keep(late)).word == "lost"
