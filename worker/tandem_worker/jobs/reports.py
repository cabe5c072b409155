"""What a job reports: progress, items and log lines, as the JSON that the stream holds."""

import math
from collections.abc import Callable
from typing import Any, Protocol

from pydantic_core import to_json

from tandem_worker.encoding import MAX_ITEM, encode
from tandem_worker.errors import TaskError

MAX_MESSAGE = 1000  # characters of a progress message


MAX_LOG = 16 << 10  # bytes of one log entry


class Sink(Protocol):
    """Carries a job's reports away. The worker's own is in output.py, the tests' one in testing.py."""

    async def progress(self, body: bytes) -> None:
        """JSON `{"current", "total", "message"}`. Only the newest counts, so a sink may leave out earlier ones."""

    async def output(self, item: bytes) -> None:
        """JSON of one output item; waits while the job's buffer is full."""

    def log(self, body: bytes) -> None:
        """JSON `{"level", "message", …fields}`. Never blocks; what finds no room is counted, not lost silently."""


class Log:
    """`job.log.info("fetched", page=3)`: a line of the job's stream with its fields. Never raises, never blocks."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.write = write  # takes JSON of a line, see log_body

    def debug(self, message: str, /, **fields: Any) -> None:
        self.write(log_body("debug", message, fields))

    def info(self, message: str, /, **fields: Any) -> None:
        self.write(log_body("info", message, fields))

    def warning(self, message: str, /, **fields: Any) -> None:
        self.write(log_body("warning", message, fields))

    def error(self, message: str, /, **fields: Any) -> None:
        self.write(log_body("error", message, fields))


def progress_body(current: float, total: float | None, message: str | None) -> bytes:
    """The JSON of a progress report. Raises TypeError for what is no finite number."""
    for number in (current,) if total is None else (current, total):
        if not isinstance(number, int | float) or not math.isfinite(number):
            raise TypeError(f"progress counts in finite numbers, {number!r} is none")
    text = None if message is None else _readable(str(message))[:MAX_MESSAGE]
    return to_json({"current": current, "total": total, "message": text})


def item_body(item: Any) -> bytes:
    """The JSON of one output item, see `Job.emit`."""
    body = encode(item)
    if len(body) > MAX_ITEM:
        raise TaskError(
            "too_large",
            f"an output item has {len(body)} bytes, the limit is {MAX_ITEM}",
            retryable=False,
        )
    return body


def log_body(level: str, message: str, fields: dict[str, Any]) -> bytes:
    """The JSON of one log entry, whatever is in it; cut to MAX_LOG bytes with `"truncated": true`.

    A field named `level` or `message` gets an underscore appended, since those two are the entry's
    own.
    """
    text = _readable(_text(message))
    entry = {"level": level, "message": text}
    entry.update(
        {f"{key}_" if key in entry else _readable(key): value for key, value in fields.items()}
    )
    try:
        body = to_json(entry, inf_nan_mode="strings", fallback=_text)
    except Exception:  # noqa: BLE001 - a log call must not end a job, and a foreign __str__ may raise anything
        entry = {key: _readable(_text(value)) for key, value in entry.items()}
        body = to_json(entry)
    if len(body) <= MAX_LOG:
        return body
    # A character takes at most 6 bytes as JSON (\u001f), so this fits in any case.
    return to_json({"level": level, "message": text[: MAX_LOG // 8], "truncated": True})


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - likewise
        return f"<unprintable {type(value).__name__}>"


def _readable(text: str) -> str:
    # Lone surrogates (from undecodable file names, say) are no UTF-8.
    return text.encode(errors="backslashreplace").decode()
