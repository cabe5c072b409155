"""Standard logging inside a job's run: as lines of the job's stream, and of the worker's log.

The job is found by the context in which a line is logged: that of its coroutine, of what the
coroutine starts (`create_task`, `asyncio.to_thread`), of its thread (`def`), or its process
(`cpu=True`). The worker's log has all these lines, with job, task and attempt; lines of the worker
and its own libraries go there alone.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, Protocol, Self

from structlog.typing import EventDict, WrappedLogger

from tandem_shared.logs import clean_event, mask_secrets
from tandem_worker.errors import Misuse
from tandem_worker.failures import to_fault
from tandem_worker.jobs.reports import log_body

Level = Literal["debug", "info", "warning", "error", "off"]

# Per attempt.
MAX_LINES = 10_000
MAX_BYTES = 4 << 20
# Loggers of this program and of the libraries it is made of. `py` is for warnings, whose text names
# a file of the server.
OWN_LOGGERS = frozenset(
    "aiohttp aiosmtplib aiosqlite arq asyncio asyncpg charset_normalizer concurrent motor obstore"
    " py pymongo redis tandem_api tandem_jobs tandem_shared tandem_worker tortoise uvicorn"
    " uvloop".split()
)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"asctime", "message", "taskName"}
# Fields that structlog's processors add, among them tracebacks.
_STRUCTLOG = frozenset(
    {"event", "exc_info", "exception", "level", "logger", "stack", "stack_info", "timestamp"}
)
_LEVELS = ((logging.ERROR, "error"), (logging.WARNING, "warning"), (logging.INFO, "info"))

_current: ContextVar["LogCapture | None"] = ContextVar("log_capture", default=None)


class LoggedAttempt(Protocol):
    """What a line says about its job: a `Job` or a `SyncJob`."""

    @property
    def id(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def attempt(self) -> int: ...


class LogCapture:
    """Within `with`, standard logging in this context goes to `write`, as JSON of a line.

    `write` is called in the thread that created this, through `soon` from other threads; without
    `soon`, in any thread. Leaving raises Misuse if the code forgot to await a coroutine. A class,
    since every attempt enters one: a generator-based context manager costs five times as much.
    """

    __slots__ = (
        "_bytes", "_dropped", "_lines", "_lock", "_outer", "_soon", "_thread", "_write",
        "job", "printed", "unawaited",
    )  # fmt: skip

    def __init__(
        self,
        job: LoggedAttempt,
        write: Callable[[bytes], None],
        soon: Callable[[Callable[[], None]], Any] | None = None,
    ) -> None:
        self.job = job
        self.printed = ""  # a line that the code has begun to print
        self.unawaited = ""  # a coroutine that the code made and dropped
        self._write: Callable[[bytes], None] | None = write
        self._soon = soon
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._lines = self._bytes = self._dropped = 0

    def __enter__(self) -> Self:
        self._outer = _current.set(self)
        return self

    def __exit__(self, raised: object, *_: object) -> None:
        """The attempt is over: report how many lines were dropped, and take no more."""
        if self.printed:
            sys.stdout.write("\n")  # ends the line, see JobStdout
        _current.reset(self._outer)
        if self._dropped:
            message = f"{self._dropped} lines of standard logging were dropped"
            limits = {"limit_lines": MAX_LINES, "limit_bytes": MAX_BYTES}
            self._deliver(log_body("warning", message, limits))
        self._write = None
        if self.unawaited and raised is None:
            raise Misuse(f"{self.unawaited}: write `await` before the call")

    def put(self, body: bytes) -> None:
        """Take a line from any thread; count it beyond the limits, ignore it after the attempt."""
        with self._lock:
            if self._lines >= MAX_LINES or self._bytes + len(body) > MAX_BYTES:
                self._dropped += 1
                return
            self._lines += 1
            self._bytes += len(body)
        if self._soon is None or threading.get_ident() == self._thread:
            self._deliver(body)
        else:
            with suppress(RuntimeError):  # the loop is closed
                self._soon(partial(self._deliver, body))

    def _deliver(self, body: bytes) -> None:
        if self._write is not None:
            self._write(body)


def add_attempt(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: which attempt a line of the worker's log is about."""
    capture = _current.get()
    if capture is not None:
        event.setdefault("job_id", capture.job.id)
        event.setdefault("task", capture.job.task)
        event.setdefault("attempt", capture.job.attempt)
    return event


def current_capture() -> LogCapture | None:
    """The capture of the attempt whose code runs here."""
    return _current.get()


class JobHandler(logging.Handler):
    """Passes each line of a job's code to the job in whose context it is logged.

    It raises nothing but the CancelledError with which every report from a thread or process fails
    once its job is over.
    """

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.users = 0
        self.before = logging.NOTSET  # the root's level, and those of its other handlers
        self.others: list[tuple[logging.Handler, int]] = []

    def handle(self, record: logging.LogRecord) -> bool:
        """Skip the handler's lock: a thread that waits for room must not block other jobs."""
        if record.levelno >= self.level and self.filter(record):
            self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        capture = _current.get()
        if capture is None or record.name.partition(".")[0] in OWN_LOGGERS:
            return
        # A line must not fail its job; and logging the error would end up here again.
        with suppress(Exception):
            capture.put(record_body(record))


def record_body(record: logging.LogRecord) -> bytes:
    """A record as a log entry: level, message, logger, `extra` fields, exception."""
    fields = _public(vars(record), _STANDARD)
    message = ""
    if isinstance(record.msg, dict) and "event" in record.msg:  # structlog's
        message = str(record.msg["event"])
        fields |= _public(record.msg, _STRUCTLOG)
    else:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit, or a foreign __str__
            message = str(record.msg)
    entry = {"logger": record.name, **clean_event(None, "", fields)}
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        fault = to_fault(error)
        entry["exception"] = f"{fault.type.removeprefix('exception:')}: {fault.message}"
    level = next((name for least, name in _LEVELS if record.levelno >= least), "debug")
    return log_body(level, mask_secrets(message), entry)


def _public(fields: dict[str, Any], hidden: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in hidden and name[0] != "_"}


@contextmanager
def job_logging(level: Level) -> Iterator[None]:
    """Send what jobs log from `level` on to their streams; other handlers are not affected.

    A nested one changes nothing, whichever of the two ends first.
    """
    root = logging.getLogger()
    handler = next((one for one in root.handlers if isinstance(one, JobHandler)), None)
    if level == "off" and handler is None:
        yield
        return
    handler = handler or _install(root, level)
    handler.users += 1
    try:
        yield
    finally:
        handler.users -= 1
        if not handler.users:
            root.removeHandler(handler)
            root.setLevel(handler.before)
            for other, least in handler.others:
                other.setLevel(least)


def _install(root: logging.Logger, level: Level) -> JobHandler:
    if not root.handlers and logging.lastResort is not None:
        # It prints warnings as long as there is no handler at all.
        root.addHandler(logging.lastResort)
    handler = JobHandler(getattr(logging, level.upper()))
    handler.before, handler.others = root.level, [(one, one.level) for one in root.handlers]
    for other, least in handler.others:
        other.setLevel(max(least, root.level))
    root.addHandler(handler)
    root.setLevel(min(root.level, handler.level))
    return handler
