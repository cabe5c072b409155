"""What a job reports (progress, items and log lines) as the JSON that its stream holds."""

import logging
import math
from collections.abc import Callable
from typing import Any, Protocol

from pydantic_core import to_json

from tandem_worker.encoding import encode
from tandem_worker.errors import Misuse, TaskError

MAX_ITEM_BYTES = 1 << 20
MAX_LOG_BYTES = 16 << 10  # of one log entry
MAX_MESSAGE_CHARS = 1000  # of progress

# Below a name whose lines do not go to the job's stream, see OWN_LOGGERS: they are there already.
_log = logging.getLogger("tandem_worker.job")


class Sink(Protocol):
    """Takes a job's reports: `runtime.output.JobOutput` or, in tests, `testing.Recorder`."""

    async def progress(self, body: bytes) -> None:
        """JSON `{"current", "total", "message"}`. Earlier reports may be dropped."""

    async def output(self, item: bytes) -> None:
        """JSON of one output item; waits while the job's buffer is full."""

    def log(self, body: bytes) -> None:
        """JSON `{"level", "message", …fields}`. Never blocks: it counts entries without room."""


class JobLog:
    """`job.log.info("fetched", page=3)` writes to the job's stream and the worker's log."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.write = write  # takes JSON, see log_body

    def debug(self, message: str, /, **fields: Any) -> None:
        self._put(logging.DEBUG, message, fields)

    def info(self, message: str, /, **fields: Any) -> None:
        self._put(logging.INFO, message, fields)

    def warning(self, message: str, /, **fields: Any) -> None:
        self._put(logging.WARNING, message, fields)

    def error(self, message: str, /, **fields: Any) -> None:
        self._put(logging.ERROR, message, fields)

    def _put(self, level: int, message: str, fields: dict[str, Any]) -> None:
        self.write(log_body(logging.getLevelName(level).lower(), message, fields))
        if not _log.isEnabledFor(level):
            return
        record = _log.makeRecord(_log.name, level, "", 0, _printable(_text(message)), (), None)
        for name, value in fields.items():
            vars(record)[f"{name}_" if name in vars(record) else name] = value
        _log.handle(record)


def progress_body(current: float, total: float | None, message: str | None) -> bytes:
    """The JSON of a progress report. Raises Misuse for anything but finite numbers."""
    for number in (current,) if total is None else (current, total):
        if not isinstance(number, int | float) or not math.isfinite(number):
            raise Misuse(f"progress takes finite numbers, not {number!r}")
    text = None if message is None else _printable(str(message))[:MAX_MESSAGE_CHARS]
    return to_json({"current": current, "total": total, "message": text})


def item_body(item: Any) -> bytes:
    """The JSON of one output item, see `Job.emit`."""
    body = encode(item)
    if len(body) > MAX_ITEM_BYTES:
        message = f"an output item has {len(body)} bytes; the limit is {MAX_ITEM_BYTES}"
        raise TaskError("too_large", message, retryable=False)
    return body


def log_body(level: str, message: str, fields: dict[str, Any]) -> bytes:
    """The JSON of any log entry; above MAX_LOG_BYTES it is cut and has `"truncated": true`.

    Fields named `level` or `message` get an underscore appended: the entry has its own.
    """
    text = _printable(_text(message))
    entry = {"level": level, "message": text}
    entry.update(
        {f"{key}_" if key in entry else _printable(key): value for key, value in fields.items()}
    )
    try:
        body = to_json(entry, inf_nan_mode="strings", fallback=_text)
    except Exception:  # noqa: BLE001 - a log call must not fail a job, and a foreign __str__ may raise anything
        body = to_json({key: _printable(_text(value)) for key, value in entry.items()})
    if len(body) <= MAX_LOG_BYTES:
        return body
    # A character takes at most 6 bytes as JSON (\u001f), so this always fits.
    return to_json({"level": level, "message": text[: MAX_LOG_BYTES // 8], "truncated": True})


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything
        return f"<unprintable {type(value).__name__}>"


def _printable(text: str) -> str:
    # Lone surrogates, from undecodable file names for instance, are not UTF-8.
    return text.encode(errors="backslashreplace").decode()
