"""Standard logging of a job's code goes to the job's own stream, within bounds."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextvars import copy_context
from typing import Any

import msgspec
import pytest
import structlog

from tandem_worker import task
from tandem_worker.jobs import logs as job_logs
from tandem_worker.jobs.logs import JobHandler, LogCapture, job_logging, record_body
from tandem_worker.jobs.sync import SyncJob
from tandem_worker.testing import Recorder, open_bench, run
from tests.worker.executors import cpu_tasks

log = logging.getLogger("shop.orders")


@task("t.logs")
async def chatty(payload: str) -> None:
    log.info("first %s", payload, extra={"order": 17})
    await asyncio.sleep(0)
    child = asyncio.create_task(asyncio.to_thread(log.warning, "second %s", payload))
    await child


@task("t.logs_sync")
def chatty_sync(job: SyncJob, payload: str) -> None:
    job.log.info("before")
    log.info("first %s", payload)
    thread = threading.Thread(target=copy_context().run, args=(log.error, "second %s", payload))
    thread.start()
    thread.join()
    job.log.info("after")


@task("t.logs_stream")
async def chatty_stream(payload: str) -> AsyncIterator[int]:
    log.info("one %s", payload)
    yield 1
    log.info("two %s", payload)


def messages(sink: Recorder) -> list[str]:
    return [line["message"] for line in sink.lines]


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        (chatty, ["first x", "second x"]),
        (chatty_sync, ["before", "first x", "second x", "after"]),
        (chatty_stream, ["one x", "two x"]),
        (cpu_tasks.logs, ["in a process x"]),
    ],
)
async def test_lines_of_each_kind_of_task_arrive_in_order(kind: Any, lines: list[str]) -> None:
    sink = Recorder()
    await run(kind, "x", sink=sink)
    assert messages(sink) == lines
    (line,) = [
        line for line in sink.lines if line["message"] == lines[-1 if kind is cpu_tasks.logs else 0]
    ]
    if kind is chatty:
        assert line == {"level": "info", "message": "first x", "logger": "shop.orders", "order": 17}
    if kind is cpu_tasks.logs:
        assert line["level"] == "warning"
        assert line["pid"] not in (None, os.getpid())


async def test_the_lines_of_two_jobs_never_mix() -> None:
    @task("t.mixed")
    async def mixed(payload: int) -> None:
        for _ in range(20):
            log.info("%s", payload)
            await asyncio.sleep(0)
            await asyncio.to_thread(log.info, "%s", payload)

    @task("t.mixed_sync")
    def mixed_sync(payload: int) -> None:
        for _ in range(40):
            log.info("%s", payload)
            time.sleep(0)

    async with open_bench() as resources:
        sinks = [Recorder() for _ in range(20)]
        await asyncio.gather(
            *(
                run((mixed, mixed_sync)[number % 2], number, sink=sink, resources=resources)
                for number, sink in enumerate(sinks)
            )
        )
    for number, sink in enumerate(sinks):
        assert messages(sink) == [str(number)] * 40


async def test_lines_after_the_end_of_a_job_are_ignored() -> None:
    later: list[asyncio.Task[None]] = []
    go = asyncio.Event()

    async def straggle() -> None:
        await go.wait()
        log.warning("too late")

    @task("t.straggler")
    async def straggler() -> None:
        later.append(asyncio.create_task(straggle()))
        log.info("in time")

    sink = Recorder()
    with job_logging("info"):
        await run(straggler, sink=sink)
        go.set()
        await later[0]
    assert messages(sink) == ["in time"]


def recorded_lines() -> Iterator[list[dict[str, Any]]]:
    lines: list[dict[str, Any]] = []
    job = SyncJob.__new__(SyncJob)  # only lines of the worker's own log name it
    with job_logging("info"), LogCapture(job, lambda body: lines.append(msgspec.json.decode(body))):
        yield lines


lines = pytest.fixture(recorded_lines)


def test_an_exception_is_logged_as_class_and_message(lines: list[dict[str, Any]]) -> None:
    try:
        raise ValueError("no such file: /srv/secret/place/order.csv, password=hunter2")
    except ValueError:
        log.exception("it failed")
    log.error("nothing raised", exc_info=True)  # noqa: LOG014 - real code does this
    log.error("with a stack", stack_info=True)
    assert [line["message"] for line in lines] == ["it failed", "nothing raised", "with a stack"]
    assert lines[0]["exception"] == "ValueError: no such file: …/order.csv, password=***"
    assert all(set(line) <= {"level", "message", "logger", "exception"} for line in lines)


def test_secrets_are_masked(lines: list[dict[str, Any]]) -> None:
    log.info(
        "connect to %s",
        "postgres://user:hunter2@host/db",
        extra={"password": "hunter2", "at": {"cookie": "x1x"}},
    )
    log.info("Authorization: Bearer abcdefghijklmnop", extra={"key": "tk_abcd_0123456789abcdef"})
    text = str(lines)
    assert len(lines) == 2
    assert not [
        word for word in ("hunter2", "x1x", "abcdefghijklmnop", "0123456789abcdef") if word in text
    ]


def test_lines_of_the_worker_and_its_libraries_are_left_out(lines: list[dict[str, Any]]) -> None:
    for name in (
        "tandem_worker",
        "tandem_shared.queue.queue",
        "aiohttp.client",
        "asyncio",
        "arq.worker",
        "py.warnings",
        "tortoise",
    ):
        logging.getLogger(name).error("ours")
    logging.getLogger("workers").error("theirs")
    logging.getLogger().error("theirs")
    assert [line["logger"] for line in lines] == ["workers", "root"]


def test_a_line_that_cannot_be_formatted_harms_nothing(lines: list[dict[str, Any]]) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    log.info("%d pieces", "many")
    log.info("%s", Broken())
    log.info("x" * 100_000)
    log.info("fields", extra={"level": 1, "far": {"nested": [float("nan")]}, "by": object})
    assert [line["message"][:9] for line in lines] == ["%d pieces", "%s", "xxxxxxxxx", "fields"]
    assert lines[2]["truncated"] is True
    assert lines[3]["level_"] == 1


def test_structlog_is_captured_too(lines: list[dict[str, Any]]) -> None:
    logger = structlog.wrap_logger(
        log,
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    logger.warning("low", left=3)
    assert lines == [{"level": "warning", "message": "low", "logger": "shop.orders", "left": 3}]


def test_levels_are_mapped_to_the_four_of_a_job(lines: list[dict[str, Any]]) -> None:
    for level in (
        5,
        logging.DEBUG,
        logging.INFO,
        25,
        logging.WARNING,
        logging.ERROR,
        logging.CRITICAL,
    ):
        log.log(level, "%d", level)
    levels = [(line["message"], line["level"]) for line in lines]
    assert levels == [
        ("20", "info"),
        ("25", "info"),
        ("30", "warning"),
        ("40", "error"),
        ("50", "error"),
    ]
    assert (
        msgspec.json.decode(record_body(logging.makeLogRecord({"levelno": 10, "msg": "x"})))[
            "level"
        ]
        == "debug"
    )


@pytest.mark.parametrize(("limit", "value"), [("MAX_LINES", 5), ("MAX_BYTES", 330)])
async def test_lines_beyond_the_limits_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(job_logs, limit, value)

    @task("t.flood")
    async def flood() -> None:
        for _ in range(100):
            log.info("%s", "x" * 10)

    sink = Recorder()
    await run(flood, sink=sink)
    *some, last = messages(sink)
    assert some == ["x" * 10] * 5
    assert last == "95 lines of standard logging were dropped"
    assert sink.lines[-1]["level"] == "warning"


def test_other_handlers_receive_the_same_lines_as_before() -> None:
    root = logging.getLogger()
    received: list[str] = []

    class Other(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            received.append(record.getMessage())

    other, before = Other(), root.level
    root.addHandler(other)
    root.setLevel(logging.WARNING)
    try:
        outer, inner = job_logging("debug"), job_logging("error")
        outer.__enter__()
        inner.__enter__()
        log.debug("for nobody else")
        log.warning("for all")
        outer.__exit__(None, None, None)
        assert root.level == logging.DEBUG
        inner.__exit__(None, None, None)
        assert (root.level, other.level) == (logging.WARNING, logging.NOTSET)
        with job_logging("off"):
            assert not [one for one in root.handlers if isinstance(one, JobHandler)]
    finally:
        root.removeHandler(other)
        root.setLevel(before)
    assert received == ["for all"]
