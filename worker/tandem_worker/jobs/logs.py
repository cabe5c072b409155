"""What the standard library's logging says within a job's run, as lines of the job's stream.

One handler finds the job by the context in which a line is logged: that of its coroutine, of what
that starts (`create_task`, `asyncio.to_thread`), of its thread (`def`) or its process (`cpu=True`).
What the worker itself and its own libraries log is none of the job's business and stays in the
worker's log alone.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Literal, Self

from tandem_shared.logs import clean_event, mask_secrets
from tandem_worker.failures import fault
from tandem_worker.jobs.reports import log_body

Level = Literal["debug", "info", "warning", "error", "off"]

LINES = 10_000  # of one attempt
BYTES = 4 << 20  # of one attempt's lines
# Loggers of this program and of the libraries that it is made of; a warning's text names a file of
# the server.
OWN = frozenset(
    "aiohttp aiosmtplib aiosqlite arq asyncio asyncpg charset_normalizer concurrent motor obstore py pymongo redis"
    " tandem_api tandem_jobs tandem_shared tandem_worker tortoise uvicorn uvloop".split()
)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"asctime", "message", "taskName"}
# What structlog's processors add to a line of its own; a traceback is among it.
_ADDED = frozenset(
    {"event", "exc_info", "exception", "level", "logger", "stack", "stack_info", "timestamp"}
)
_LEVELS = ((logging.ERROR, "error"), (logging.WARNING, "warning"), (logging.INFO, "info"))

_lines: ContextVar["Lines | None"] = ContextVar("lines", default=None)


class Lines:
    """What one attempt may log: `write` takes JSON of a line, in the thread in which this was made.

    Every attempt has one and most log nothing, so it is a context by itself: a generator costs five
    times as much.
    """

    __slots__ = (
        "_bytes",
        "_count",
        "_counting",
        "_dropped",
        "_outer",
        "_soon",
        "_thread",
        "_write",
    )

    def __init__(
        self,
        write: Callable[[bytes], None],
        soon: Callable[[Callable[[], None]], Any] | None = None,
    ) -> None:
        self._write: Callable[[bytes], None] | None = write
        self._soon = soon  # has something done in that thread
        self._thread = threading.get_ident()
        self._counting = threading.Lock()
        self._count = self._bytes = self._dropped = 0

    def __enter__(self) -> Self:
        self._outer = _lines.set(self)
        return self

    def __exit__(self, *raised: object) -> None:
        _lines.reset(self._outer)
        self.close()

    def put(self, body: bytes) -> None:
        """Takes a line, from whatever thread; counts it where there is no room, drops it where the attempt is over."""
        with self._counting:
            full = self._count >= LINES or self._bytes + len(body) > BYTES
            if full:
                self._dropped += 1
            else:
                self._count += 1
                self._bytes += len(body)
        if full:
            return
        if self._soon is None or threading.get_ident() == self._thread:
            self._say(body)
        else:
            with suppress(RuntimeError):  # the loop has ended
                self._soon(lambda: self._say(body))

    def _say(self, body: bytes) -> None:
        if self._write is not None:
            self._write(body)

    def close(self) -> None:
        """The attempt is over: tells how many lines there was no room for, and takes no more."""
        if self._dropped:
            message = f"{self._dropped} lines of standard logging were dropped"
            limits = {"limit_lines": LINES, "limit_bytes": BYTES}
            self._say(log_body("warning", message, limits))
        self._write = None


def following(
    write: Callable[[bytes], None], soon: Callable[[Callable[[], None]], Any] | None = None
) -> Lines:
    """Inside, what is logged goes to `write`. Without `soon` that may be called from any thread."""
    return Lines(write, soon)


class JobHandler(logging.Handler):
    """Hands each line of a job's code to the job in whose context it is logged.

    It raises nothing but the CancelledError that every report of a thread or process raises once
    its job is over.
    """

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.users = 0
        self.before = logging.NOTSET  # the root's level, and those of its other handlers
        self.others: list[tuple[logging.Handler, int]] = []

    def handle(self, record: logging.LogRecord) -> bool:
        """Without the lock: a thread that waits for room in its job must not hold up the others."""
        if record.levelno >= self.level and self.filter(record):
            self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        lines = _lines.get()
        if lines is None or record.name.partition(".")[0] in OWN:
            return
        with suppress(
            Exception
        ):  # a line is never worth a job, and who logs from within would come here again
            lines.put(body_of(record))


def body_of(record: logging.LogRecord) -> bytes:
    """The JSON of a log entry: level, message, logger, the fields of `extra`, class and words of an exception."""
    fields = {
        name: value
        for name, value in vars(record).items()
        if name not in _STANDARD and name[0] != "_"
    }
    message = ""
    if isinstance(record.msg, dict) and "event" in record.msg:  # structlog's
        message = str(record.msg["event"])
        fields |= {
            name: value
            for name, value in record.msg.items()
            if name not in _ADDED and name[0] != "_"
        }
    else:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit, or a foreign __str__
            message = str(record.msg)
    shown = {"logger": record.name, **clean_event(None, "", fields)}
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        told = fault(error)
        shown["exception"] = f"{told.type.removeprefix('exception:')}: {told.message}"
    level = next((name for least, name in _LEVELS if record.levelno >= least), "debug")
    return log_body(level, mask_secrets(message), shown)


@contextmanager
def installed(level: Level) -> Iterator[None]:
    """Inside, what jobs log from `level` on goes to their streams; other handlers hear what they heard before.

    Inside of another one this changes nothing, whichever of the two ends first.
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
            for one, least in handler.others:
                one.setLevel(least)


def _install(root: logging.Logger, level: Level) -> JobHandler:
    if not root.handlers and logging.lastResort is not None:
        root.addHandler(
            logging.lastResort
        )  # what prints warnings as long as there is no handler at all
    handler = JobHandler(getattr(logging, level.upper()))
    handler.before, handler.others = root.level, [(one, one.level) for one in root.handlers]
    for one, least in handler.others:
        one.setLevel(max(least, root.level))
    root.addHandler(handler)
    root.setLevel(min(root.level, handler.level))
    return handler
