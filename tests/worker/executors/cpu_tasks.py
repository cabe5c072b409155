"""Tasks for child processes, which import this module, and some of the same for threads."""

import asyncio
import itertools
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from tandem_worker import task
from tandem_worker.errors import Permanent, Retry
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.sync import SyncJob


class Source(BaseModel):
    source: FileRef


class Where(BaseModel):
    path: Path


class Deep(BaseModel):
    """A result of the author's own type."""

    inner: dict[str, list[int]]


@task("cpu.double", cpu=True)
def double(payload: int) -> int:
    return payload * 2


@task("cpu.pid", cpu=True)
def pid() -> int:
    return os.getpid()


@task("cpu.deep", cpu=True)
def deep(payload: list[int]) -> Deep:
    return Deep(inner={"numbers": payload})


@task("cpu.facts", cpu=True)
def facts(job: SyncJob) -> list[object]:
    return [
        job.id,
        job.attempt,
        job.max_attempts,
        job.task,
        job.tenant,
        job.traceparent,
        job.deadline,
        job.cancelled,
    ]


@task("cpu.report", cpu=True)
def report(job: SyncJob, payload: int) -> Iterator[int]:
    print("this is not a frame")  # noqa: T201 - it must not reach the pipe
    os.write(1, b"nor is this\n")
    for number in range(payload):
        job.progress(number, payload)
        job.log.info("at", number=number)
        yield number


@task("cpu.not_json", cpu=True)
def not_json() -> object:
    return object()


@task("cpu.die", cpu=True)
def die(job: SyncJob, payload: str) -> None:
    job.emit(os.getpid())
    if payload == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.Signals[payload])


@task("cpu.raises", cpu=True)
def raises(payload: str) -> None:
    match payload:
        case "retry":
            raise Retry(after=7, message="not yet")
        case "permanent":
            raise Permanent("card_declined", "the bank said no")
        case "exit":
            sys.exit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "cancelled":
            raise asyncio.CancelledError
    raise ValueError(payload)


@task("cpu.wait", cpu=True)
def wait(job: SyncJob, payload: Where) -> int:
    """Emit the process id, then wait until the file exists."""
    job.emit(os.getpid())
    while not payload.path.exists():
        pass
    return os.getpid()


@task("cpu.spin", cpu=True)
def spin(job: SyncJob, payload: Where) -> None:
    """Run forever; leave a word behind in a `finally` block."""
    try:
        job.emit(os.getpid())
        while True:
            pass
    finally:
        payload.path.write_text("finally")


@task("cpu.deaf", cpu=True)
def deaf(job: SyncJob) -> None:
    """Block the interpreter: neither signal handlers nor other threads run."""
    job.emit(os.getpid())
    re.match(r"(a+)+$", "a" * 60 + "b")


@task("cpu.stubborn", cpu=True)
def stubborn(job: SyncJob) -> None:
    """Ignore every cancellation."""
    job.emit(os.getpid())
    while True:
        try:
            threading.Event().wait()
        except asyncio.CancelledError:
            continue


@task("cpu.emit_three", cpu=True)
def emit_three() -> Iterator[int]:
    yield from range(3)


@task("thread.emit_three")
def emit_three_in_a_thread() -> Iterator[int]:
    yield from range(3)


@task("cpu.emit_and_fail", cpu=True)
def emit_and_fail() -> Iterator[int]:
    yield from range(3)
    raise Permanent("no_more", "that was all")


@task("thread.emit_and_fail")
def emit_and_fail_in_a_thread() -> Iterator[int]:
    yield from range(3)
    raise Permanent("no_more", "that was all")


@task("cpu.emit_for_ever", cpu=True)
def emit_for_ever() -> Iterator[int]:
    yield from itertools.count()


@task("thread.emit_for_ever")
def emit_for_ever_in_a_thread() -> Iterator[int]:
    yield from itertools.count()


def _copy(job: SyncJob, payload: Source) -> FileRef:
    try:
        size = job.files.stat(payload.source).size
    except Permanent as error:
        job.log.warning("refused", type=error.type)
        raise
    whole = job.files.read(payload.source)
    if len(whole) != size:
        raise ValueError("the file has another size than it says")
    job.files.write("head.bin", next(job.files.open(payload.source))[:10])
    return job.files.write("copy.bin", job.files.open(payload.source))


@task("cpu.copy", cpu=True)
def copy(job: SyncJob, payload: Source) -> FileRef:
    return _copy(job, payload)


@task("thread.copy")
def copy_in_a_thread(job: SyncJob, payload: Source) -> FileRef:
    return _copy(job, payload)


@task("cpu.write_badly", cpu=True)
def write_badly(job: SyncJob) -> None:
    job.files.write("../out", itertools.repeat(b"x" * 100_000))


@task("thread.write_badly")
def write_badly_in_a_thread(job: SyncJob) -> None:
    job.files.write("../out", itertools.repeat(b"x" * 100_000))


@task("cpu.logs", cpu=True)
def logs(payload: str) -> None:
    log = logging.getLogger("shop.cpu")
    log.debug("unheard")
    log.warning("in a process %s", payload, extra={"pid": os.getpid()})
