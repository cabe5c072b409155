"""A job's reports: their format, bounds and order; and the files of `def` code."""

import asyncio
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_worker import task
from tandem_worker.errors import Permanent, TaskError
from tandem_worker.executors.execute import execute
from tandem_worker.executors.threads import MAX_BUFFERED_BYTES
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.reports import MAX_ITEM_BYTES, MAX_LOG_BYTES, MAX_MESSAGE_CHARS, log_body
from tandem_worker.jobs.sync import SyncJob
from tandem_worker.task import task_of
from tandem_worker.testing import Bench, Recorder, open_bench, run, upload
from tests.conftest import eventually
from tests.worker.bench import local_job
from tests.worker.executors import cpu_tasks


def job_of(function: Callable[..., Any], bench: Bench, sink: Any) -> Job:
    kind = task_of(function)
    return local_job(
        bench, sink, bench.pools, id="one", task=kind.name, deadline=time.monotonic() + 60, stamp=1
    )


async def test_progress_with_and_without_total_and_message() -> None:
    @task("moving")
    async def moving(job: Job) -> None:
        await job.progress(1)
        await job.progress(1.5, 3)
        await job.progress(3, 3, "x" * (MAX_MESSAGE_CHARS + 1))

    seen = Recorder()
    await run(moving, sink=seen)
    assert seen.progressed == [
        {"current": 1, "total": None, "message": None},
        {"current": 1.5, "total": 3, "message": None},
        {"current": 3, "total": 3, "message": "x" * MAX_MESSAGE_CHARS},
    ]


@pytest.mark.parametrize("arguments", [("half",), (math.nan,), (1, math.inf), (None,)])
async def test_progress_takes_only_finite_numbers(arguments: tuple[Any, ...]) -> None:
    @task("moving")
    async def moving(job: Job) -> None:
        await job.progress(*arguments)

    with pytest.raises(TypeError, match="finite numbers"):
        await run(moving)


@pytest.mark.parametrize("size", [MAX_ITEM_BYTES - 2, MAX_ITEM_BYTES - 1])
async def test_an_item_has_a_limit(size: int) -> None:
    @task("large.async")
    async def on_the_loop(job: Job) -> None:
        await job.emit("x" * size)

    @task("large.sync")
    def in_a_thread(job: SyncJob) -> None:
        job.emit("x" * size)

    for function in (on_the_loop, in_a_thread):
        seen = Recorder()
        if size + 2 <= MAX_ITEM_BYTES:
            await run(function, sink=seen)
            assert len(seen.items[0]) == size
        else:
            with pytest.raises(TaskError, match=f"has {size + 2} bytes") as caught:
                await run(function, sink=seen)
            assert (caught.value.type, caught.value.retryable) == ("too_large", False)


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")


FIELDS = st.dictionaries(
    st.text(max_size=20),
    st.recursive(
        st.none()
        | st.floats()
        | st.integers()
        | st.text()
        | st.binary()
        | st.builds(object)
        | st.builds(Unprintable),
        lambda inner: (
            st.lists(inner, max_size=5)
            | st.dictionaries(st.integers() | st.text(), inner, max_size=5)
        ),
        max_leaves=10,
    ),
    max_size=5,
)
# Any text that Python can hold: with lone surrogates and control characters.
TEXTS = st.text(alphabet=st.characters(exclude_categories=[]), max_size=50)


@given(message=TEXTS | TEXTS.map(lambda text: text * 2000), fields=FIELDS, name=TEXTS)
def test_every_log_entry_is_bounded_json(message: str, fields: dict[str, Any], name: str) -> None:
    body = log_body("info", message, {**fields, name: 1})
    assert len(body) <= MAX_LOG_BYTES
    entry = json.loads(body)
    assert entry["level"] == "info"
    assert min(body) >= 0x20  # a control character would end the line
    if not entry.get("truncated"):
        assert entry["message"] == message.encode(errors="backslashreplace").decode()


async def test_log_entries_have_level_message_and_fields() -> None:
    @task("logs")
    async def logs(job: Job) -> None:
        job.log.debug("a", n=1)
        job.log.info("b", level="high", message="c")
        job.log.warning("d", left=math.inf)
        job.log.error("e", error=ValueError("f"))

    seen = Recorder()
    await run(logs, sink=seen)
    assert seen.lines == [
        {"level": "debug", "message": "a", "n": 1},
        {"level": "info", "message": "b", "level_": "high", "message_": "c"},
        {"level": "warning", "message": "d", "left": "Infinity"},
        {"level": "error", "message": "e", "error": "f"},
    ]


class Slow(Recorder):
    """A sink that takes items once it is open, and measures how far the thread is ahead of it."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = asyncio.Event()
        self.taken = 0
        self.lead = 0
        self.given_out: Callable[[], int] = lambda: 0
        self.kinds: list[str] = []

    async def output(self, item: bytes) -> None:
        await self.opened.wait()
        self.lead = max(self.lead, self.given_out() - self.taken)
        self.taken += len(item)
        self.kinds.append("output")

    async def progress(self, body: bytes) -> None:
        self.kinds.append("progress")

    def log(self, body: bytes) -> None:
        self.kinds.append("log")


async def test_a_thread_waits_for_a_slow_sink() -> None:
    given_out, item = [0], "x" * 1022

    @task("fast")
    def fast(job: SyncJob) -> None:
        for _ in range(2000):
            job.emit(item)
            given_out[0] += 1024

    async with open_bench() as resources:
        sink = Slow()
        sink.given_out = lambda: given_out[0]
        running = asyncio.create_task(
            execute(task_of(fast), job_of(fast, resources, sink), {}, resources.pools)
        )
        await eventually(lambda: given_out[0] > MAX_BUFFERED_BYTES)
        sink.opened.set()
        await running
    assert MAX_BUFFERED_BYTES - 1024 <= sink.lead <= MAX_BUFFERED_BYTES + 1024
    assert sink.taken == given_out[0] == 2000 * 1024


@pytest.mark.parametrize("function", [cpu_tasks.emit_three, cpu_tasks.emit_three_in_a_thread])
async def test_a_result_comes_after_all_reports(function: Callable[..., Any]) -> None:
    async with open_bench() as resources:
        sink = Slow()
        job = job_of(function, resources, sink)
        running = asyncio.create_task(
            execute(task_of(function), job, task_of(function).decode(b"{}"), resources.pools)
        )
        # Twenty others of its kind run to their end: this one had the time too.
        for _ in range(20):
            await run(function, resources=resources)
        assert not running.done()
        sink.opened.set()
        await running
    assert sink.kinds == ["output"] * 3


@pytest.mark.parametrize("function", [cpu_tasks.emit_and_fail, cpu_tasks.emit_and_fail_in_a_thread])
async def test_a_failure_comes_after_all_reports(function: Callable[..., Any]) -> None:
    async with open_bench() as resources:
        sink = Slow()
        job = job_of(function, resources, sink)
        running = asyncio.create_task(
            execute(task_of(function), job, task_of(function).decode(b"{}"), resources.pools)
        )
        for _ in range(20):
            with pytest.raises(Permanent):
                await run(function, resources=resources)
        assert not running.done()
        sink.opened.set()
        with pytest.raises(Permanent, match="that was all"):
            await running
    assert sink.kinds == ["output"] * 3


async def test_reports_of_a_thread_keep_their_order() -> None:
    @task("ordered")
    def ordered(job: SyncJob) -> None:
        for number in range(500):
            job.emit(number)
            job.progress(number)
            job.log.info("at", number=number)

    async with open_bench() as resources:
        sink = Slow()
        sink.opened.set()
        await execute(task_of(ordered), job_of(ordered, resources, sink), {}, resources.pools)
    assert sink.kinds == ["output", "progress", "log"] * 500


async def test_threads_that_the_code_starts_can_report() -> None:
    @task("spread")
    def spread(job: SyncJob) -> None:
        def emit() -> None:
            for number in range(200):
                job.emit(number)

        threads = [threading.Thread(target=emit) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    seen = Recorder()
    await run(spread, sink=seen)
    assert sorted(seen.items) == sorted(list(range(200)) * 4)


@pytest.mark.parametrize("function", [cpu_tasks.emit_for_ever, cpu_tasks.emit_for_ever_in_a_thread])
async def test_a_failing_sink_ends_only_its_own_job(function: Callable[..., Any]) -> None:
    class Failing(Recorder):
        async def output(self, item: bytes) -> None:
            await super().output(item)
            if len(self.items) == 3:
                raise TaskError("too_large", "enough", retryable=False)

    async with open_bench() as resources:
        job = job_of(function, resources, Failing())
        with pytest.raises(TaskError, match="enough"):
            await execute(task_of(function), job, task_of(function).decode(b"{}"), resources.pools)
        assert await run(cpu_tasks.double, 4, resources=resources) == 8


async def test_tasks_beyond_the_number_of_threads_wait() -> None:
    at_once, most = [0], [0]
    lock = threading.Lock()

    @task("counted")
    def counted(payload: int) -> int:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.001)  # lets other threads in
        with lock:
            at_once[0] -= 1
        return payload

    async with open_bench(concurrency=3) as resources:
        results = await asyncio.gather(
            *(run(counted, number, resources=resources) for number in range(50))
        )
    assert results == list(range(50))
    assert most[0] <= 3


async def test_job_http_and_sql_need_async_code() -> None:
    @task("a")
    def http(job: SyncJob) -> None:
        _ = job.http

    @task("b")
    def sql(job: SyncJob) -> None:
        job.sql("main")

    for function in (http, sql):
        with pytest.raises(TypeError, match="needs an async def task"):
            await run(function)


DATA = bytes(range(256)) * 12_000  # 3 MB: several pieces


@pytest.mark.parametrize("function", [cpu_tasks.copy, cpu_tasks.copy_in_a_thread])
async def test_def_code_reads_and_writes_files(function: Callable[..., Any]) -> None:
    async with open_bench() as resources:
        seen = Recorder()
        source = await upload(resources, DATA, "data.bin")
        result = await run(
            function, {"source": source}, resources=resources, sink=seen, job_id="one"
        )
    assert (result.file, result.size, result.sha256) == ("one/copy.bin", len(DATA), source.sha256)
    assert seen.files == {"copy.bin": DATA, "head.bin": DATA[:10]}


@pytest.mark.parametrize("function", [cpu_tasks.copy, cpu_tasks.copy_in_a_thread])
async def test_a_missing_file_raises_where_the_code_reads_it(
    function: Callable[..., Any],
) -> None:
    seen = Recorder()
    with pytest.raises(Permanent, match="does not exist, or has expired") as caught:
        await run(function, {"source": {"file": "0" * 30}}, sink=seen)
    assert caught.value.type == "file_not_found"
    assert seen.lines == [{"level": "warning", "message": "refused", "type": "file_not_found"}]


@pytest.mark.parametrize("function", [cpu_tasks.write_badly, cpu_tasks.write_badly_in_a_thread])
async def test_an_invalid_file_name_raises_where_the_code_writes(
    function: Callable[..., Any],
) -> None:
    with pytest.raises(Permanent) as caught:
        await run(function)
    assert caught.value.type == "invalid_file_name"


async def test_a_partly_written_file_does_not_exist() -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * 10
        raise ValueError("no more")

    @task("half")
    def half(job: SyncJob) -> None:
        job.files.write("half.bin", broken())

    seen = Recorder()
    with pytest.raises(ValueError, match="no more"):
        await run(half, sink=seen)
    assert seen.files == {}


async def test_other_jobs_are_looked_up_for_the_jobs_own_tenant() -> None:
    asked: list[tuple[str, str]] = []

    async def find(id: str, *, tenant: str) -> None:
        asked.append((id, tenant))

    async with open_bench() as resources:
        job = local_job(
            resources,
            Recorder(),
            resources.pools,
            id="one",
            task="t",
            deadline=0,
            tenant="acme",
            find=find,
        )
        with pytest.raises(Permanent, match="does not exist, or has expired"):
            await job.files.read(FileRef(file="other/rows.csv"))
    assert asked == [("other", "acme")]


async def test_a_job_without_files_has_written_nothing() -> None:
    async with open_bench() as resources:
        assert (
            local_job(
                resources, Recorder(), resources.pools, id="one", task="t", deadline=0
            ).written
            == []
        )
