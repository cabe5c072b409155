"""A worker's everyday: jobs are claimed, run, retried and finished, one by one and in bulk."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel, Field

from tandem_shared.files.names import job_path
from tandem_shared.files.store import open_store
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Submission
from tandem_shared.jobs.states import State
from tandem_shared.retry_policy import RetryPolicy
from tandem_worker import task
from tandem_worker.errors import Permanent, Retry
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob
from tests.conftest import eventually
from tests.worker.workers import Client, make_worker, outcomes, working

ONCE = RetryPolicy(max_attempts=1)
AT_ONCE = RetryPolicy(max_attempts=3, base=0.01, jitter=False)


@task("add")
async def add(payload: list[int]) -> int:
    return sum(payload)


async def test_a_job_is_claimed_run_and_finished(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    @task("a")
    async def chatty(job: Job, payload: dict[str, Any]) -> dict[str, Any]:
        await job.progress(1, 2, "half")
        await job.emit({"n": 1})
        job.log.info("fetched", page=1)
        return {"got": payload, "attempt": job.attempt, "of": job.max_attempts, "task": job.task}

    async with working(redis_url, tmp_path, chatty) as worker:
        id = await client.submit(chatty, {"x": "é"})
        assert await client.result(id) == {"got": {"x": "é"}, "attempt": 1, "of": 3, "task": "a"}
        record = await client.record(id)
        assert outcomes(record) == ["succeeded"]
        assert record.attempts[0].worker == worker.id
        assert msgspec.json.decode(record.progress or b"") == {
            "current": 1,
            "total": 2,
            "message": "half",
        }
        assert await client.items(id) == [{"n": 1}]
        assert await client.items(id, "log") == [{"level": "info", "message": "fetched", "page": 1}]
        assert (worker.jobs_complete, worker.jobs_failed, worker.jobs_retried) == (1, 0, 0)
        (info,) = await client.queue.workers()
        assert (info.id, info.concurrency, info.queues, info.draining) == (
            worker.id,
            100,
            ("default",),
            False,
        )
    assert await client.queue.workers() == []


async def test_every_kind_of_task_runs(client: Client, redis_url: str, tmp_path: Path) -> None:
    @task("stream")
    async def stream(payload: int) -> AsyncIterator[int]:
        for number in range(payload):
            yield number

    @task("thread")
    def thread(job: SyncJob, payload: int) -> int:
        job.emit(payload)
        return payload + 1

    async with working(redis_url, tmp_path, stream, thread):
        streams, threads = await client.submit(stream, 300), await client.submit(thread, 1)
        assert await client.result(streams) is None
        assert await client.items(streams) == list(range(300))
        assert await client.result(threads) == 2
        assert await client.items(threads) == [1]


async def test_a_failure_is_retried_by_the_policy_until_it_is_final(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    @task("flaky", retry=AT_ONCE)
    async def flaky(job: Job, payload: int) -> int:
        if job.attempt <= payload:
            raise ValueError(f"attempt {job.attempt}")
        return job.attempt

    async with working(redis_url, tmp_path, flaky, lease=60.0) as worker:
        passes, fails = await client.submit(flaky, 2), await client.submit(flaky, 3)
        assert await client.result(passes) == 3
        assert outcomes(await client.record(passes)) == ["failed", "failed", "succeeded"]
        expected = {
            "type": "exception:ValueError",
            "message": "attempt 3",
            "retryable": True,
            "attempt": 3,
        }
        assert await client.error(fails) == expected
        assert outcomes(await client.record(fails)) == ["failed"] * 3
        assert (worker.jobs_complete, worker.jobs_failed, worker.jobs_retried) == (1, 1, 4)


async def test_retry_after_is_the_minimum_delay(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    @task("busy", retry=AT_ONCE)
    async def busy() -> None:
        raise Retry(after="1h", message="busy")

    async with working(redis_url, tmp_path, busy):
        id = await client.submit(busy)
        record = await client.reaches(id, State.RETRYING)
    assert record.attempts[-1].ended is not None
    assert record.due * 1000 - record.attempts[-1].ended >= 3599 * 10**6
    assert msgspec.json.decode(record.error or b"")["type"] == "retry"


async def test_delays_between_attempts_grow(client: Client, redis_url: str, tmp_path: Path) -> None:
    @task("broken", retry=RetryPolicy(max_attempts=3, base=0.05, jitter=False))
    async def broken() -> None:
        raise ValueError

    async with working(redis_url, tmp_path, broken):
        id = await client.submit(broken)
        await client.error(id)
    first, second, third = (await client.record(id)).attempts
    assert second.began - (first.ended or 0) >= 49_000  # µs: no attempt starts before its time
    assert third.began - (second.ended or 0) >= 99_000


async def test_a_permanent_failure_is_not_retried(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    @task("card", retry=AT_ONCE)
    async def card() -> None:
        raise Permanent("card_declined", "no")

    async with working(redis_url, tmp_path, card):
        id = await client.submit(card)
        expected = {"type": "card_declined", "message": "no", "retryable": False, "attempt": 1}
        assert await client.error(id) == expected


class Sized(BaseModel):
    width: int = Field(ge=1)
    inner: dict[str, int] = {}


async def test_an_invalid_payload_fails_without_a_retry(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    @task("sized", retry=AT_ONCE)
    async def sized(payload: Sized) -> None:
        raise AssertionError("it must not run")

    async with working(redis_url, tmp_path, sized):
        id = await client.submit(sized, {"width": 0, "inner": {"a/b": "hunter2"}})
        error = await client.error(id)
        assert (error["type"], error["retryable"], error["attempt"]) == (
            "invalid_payload",
            False,
            1,
        )
        assert "/payload/width: " in error["message"]
        assert "/payload/inner/a~1b: " in error["message"]
        assert "hunter2" not in error["message"]


async def test_a_timeout_differs_from_a_timeout_error_of_the_code(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    @task("slow", timeout=0.05, retry=ONCE)
    async def slow() -> None:
        await asyncio.Event().wait()

    @task("own", retry=ONCE)
    async def own() -> None:
        raise TimeoutError("the printer does not answer")

    @task("nested", retry=ONCE)
    async def nested() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    async with working(redis_url, tmp_path, slow, own, nested):
        for function, type_, outcome in (
            (slow, "timeout", "timeout"), (own, "exception:TimeoutError", "failed"),
            (nested, "exception:TimeoutError", "failed"),
        ):  # fmt: skip
            id = await client.submit(function)
            assert (await client.error(id))["type"] == type_
            assert outcomes(await client.record(id)) == [outcome]


async def test_a_timeout_stays_a_timeout_whatever_the_code_does(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    @task("cut")
    async def cut(payload: str) -> str:
        cancels = 0
        while cancels < (2 if payload == "ignores" else 1):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancels += 1
        if payload == "raises":
            raise RuntimeError("interrupted")
        return "too late"

    async with working(redis_url, tmp_path, cut):
        for way in ("returns", "raises", "ignores"):
            id = await client.submit(cut, way, timeout=0.05, retry={"max_attempts": 1})
            assert (await client.error(id))["type"] == "timeout"
            assert outcomes(await client.record(id)) == ["timeout"]


async def test_a_timed_out_job_is_retried(client: Client, redis_url: str, tmp_path: Path) -> None:
    @task("slow", timeout=0.05, retry=AT_ONCE)
    async def slow(job: Job) -> int:
        if job.attempt == 1:
            await asyncio.Event().wait()
        return job.attempt

    async with working(redis_url, tmp_path, slow):
        assert await client.result(await client.submit(slow)) == 2


async def test_a_large_result_becomes_a_file(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    @task("large")
    async def large(job: Job, payload: int) -> str:
        await job.files.write("result.json", b"the task's own")
        return "é" * payload

    async with working(redis_url, tmp_path, large):
        id = await client.submit(large, 200_000)
        result = await client.result(id)
        record = await client.record(id)
    body = msgspec.json.encode("é" * 200_000)
    assert result["file"]["size"] == len(body)
    assert result["file"]["sha256"] == hashlib.sha256(body).hexdigest()
    files = {view["name"]: view for view in msgspec.json.decode(record.files or b"[]")}
    assert len(files) == 2  # the task's own file of that name is not replaced
    name = result["file"]["file"].partition("/")[2]
    async with open_store(f"file://{tmp_path}/store") as store:
        assert await store.load(job_path(id, record.attempts[-1].began, name), 1 << 20) == body
        assert (
            await store.load(job_path(id, record.attempts[-1].began, "result.json"), 100)
            == b"the task's own"
        )


async def test_only_the_accepted_attempt_publishes_its_files(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    @task("writes", retry=AT_ONCE)
    async def writes(job: Job, payload: int) -> None:
        await job.files.write(f"{job.attempt}.txt", b"x")
        if job.attempt < payload:
            raise ValueError

    async with working(redis_url, tmp_path, writes):
        passes, fails = await client.submit(writes, 2), await client.submit(writes, 9)
        await client.result(passes)
        await client.error(fails)
        names = [
            view["name"]
            for view in msgspec.json.decode((await client.record(passes)).files or b"[]")
        ]
        assert names == ["2.txt"]
        assert (await client.record(fails)).files is None


async def test_a_job_reads_the_files_of_another(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    @task("writes")
    async def writes(job: Job) -> dict[str, Any]:
        return (await job.files.write("a.txt", b"hello")).model_dump()

    @task("reads")
    async def reads(job: Job, payload: dict[str, Any]) -> str:
        return (await job.files.read(payload)).decode()

    async with working(redis_url, tmp_path, writes, reads):
        reference = await client.result(await client.submit(writes))
        assert await client.result(await client.submit(reads, reference)) == "hello"


async def test_a_thousand_jobs_run_once_each_and_slots_are_never_exceeded(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    runs: Counter[int] = Counter()
    now = most = 0

    @task("count")
    async def count(payload: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        runs[payload] += 1
        await asyncio.sleep(0.001)
        now -= 1
        return payload

    jobs = [
        Submission(id=new_id(), task="count", payload=b"%d" % n, options=JobOptions(timeout=30))
        for n in range(1000)
    ]
    async with working(redis_url, tmp_path, count, concurrency=100) as worker:
        await client.queue.submit_many(jobs)
        await eventually(lambda: worker.jobs_complete == 1000, 30)
        await eventually(lambda: not worker.runs)
    assert runs == Counter(range(1000))
    assert 50 < most <= 100
    records = [await client.record(job.id) for job in jobs]
    assert {record.state for record in records} == {State.SUCCEEDED}
    assert [record.result for record in records] == [b"%d" % n for n in range(1000)]


async def test_no_jobs_are_claimed_while_too_many_outcomes_are_unwritten(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    worker = make_worker(redis_url, tmp_path, add, concurrency=5)
    try:
        assert worker.slots.room == 5
        worker.slots.outcomes.unwritten = 2000
        assert worker.slots.room == 0
    finally:
        worker.slots.outcomes.unwritten = 0
        await worker.close()


async def test_an_error_of_the_worker_itself_is_charged(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    # A policy that skipped validation: without a charge, the job would return forever.
    @task("failing")
    async def failing() -> None:
        raise ValueError

    async with working(redis_url, tmp_path, failing):
        id = await client.submit(failing, retry={"max_attempts": 1, "backoff": "sideways"})
        assert (await client.error(id))["type"] == "internal"


async def test_failure_messages_contain_no_secrets_paths_or_tracebacks(
    client: Client, redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @task("url", retry=ONCE)
    async def url() -> None:
        raise ConnectionError("cannot reach postgres://app:hunter2@db/x with Bearer abcdefghij")

    @task("open", retry=ONCE)
    async def opens() -> None:
        Path("/srv/secrets/of/the/house.txt").read_text()

    @task("silent", retry=ONCE)
    async def silent() -> None:
        raise KeyboardInterruptLike

    async with working(redis_url, tmp_path, url, opens, silent):
        messages = [
            (await client.error(await client.submit(one)))["message"]
            for one in (url, opens, silent)
        ]
    assert messages[0] == "cannot reach postgres://app:***@db/x with Bearer ***"
    assert messages[1] == "No such file or directory"
    assert messages[2] == "the task raised KeyboardInterruptLike without a message"


class KeyboardInterruptLike(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")
