"""A job on stderr, for people: log lines and, on a terminal, a live line below them."""

import os
import unicodedata
from typing import TextIO

import msgspec

from tandem_jobs.client.models import Entry, Job, Progress

BAR_COLUMNS = 24
MAX_VALUE_CHARS = 300
DEFAULT_COLUMNS = 80
CLEAR_LINE = "\r\x1b[2K"
COLOURS = {
    "succeeded": 32,
    "failed": 31,
    "cancelled": 33,
    "error": 31,
    "critical": 31,
    "warning": 33,
    "debug": 2,
}
# Control characters in texts of tasks could move the cursor or recolour the terminal.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0))}
_ESCAPED = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


class Screen:
    """The lines of one job. The live line and colours need a terminal; TERM=dumb turns both off.

    NO_COLOR (https://no-color.org) turns colours off.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._colours = self._live and not os.environ.get("NO_COLOR")
        utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
        self._full, self._empty, self._dot, self._ellipsis = "█░·…" if utf8 else "#--~"
        self._state, self._attempt, self._max_attempts = "", 0, 0
        self._waiting = ""  # for what
        self._progress: Progress | None = None
        self._drawn = ""  # the live line
        self._reason = ""  # of the last retry

    def print(self, text: str, colour: str = "") -> None:
        """Print a line above the live line."""
        self.clear()
        print(self._coloured(text.translate(_CONTROL), colour), file=self._stream, flush=True)

    def retrying(self, reason: str) -> None:
        """Report why a call is retried, once until the next entry arrives."""
        if reason != self._reason:
            self._reason = reason
            self.print(f"no answer ({reason}); retrying", "warning")

    def clear(self) -> None:
        """Remove the live line."""
        if self._drawn:
            self._write(CLEAR_LINE)
            self._drawn = ""

    def show(self, entry: Entry) -> None:
        """Show an entry of any type but `output`."""
        self._reason = ""
        if entry.type == "log":
            self.print(*_log_line(entry))
        elif entry.type == "progress":
            self._progress = entry.progress
        elif entry.type == "state":
            self._show_state(entry.job)
        elif entry.type == "end":
            self._update(entry.job)
            self.print(summary(entry.job), entry.job.state)

    def _update(self, job: Job) -> bool:
        """Whether the state or the attempt is new."""
        old = self._state, self._attempt
        if job.attempt != self._attempt:
            self._progress = None
        self._state, self._attempt = job.state, job.attempt
        self._max_attempts = job.max_attempts
        self._waiting = job.waiting_for.detail if job.waiting_for else ""
        return old != (job.state, job.attempt)

    def _show_state(self, job: Job) -> None:
        if not self._update(job):
            return
        if job.state == "retrying" and job.error is not None:
            text = f"attempt {job.attempt} failed ({job.error.type}): {job.error.message}"
            self.print(text, "warning")
        elif not self._live and not job.done:
            text = f"{job.state}, attempt {job.attempt}" if job.attempt else job.state
            self.print(f"{text}: {self._waiting}" if self._waiting else text)

    def draw(self) -> None:
        """Redraw the live line if it has changed."""
        if not self._live or not self._state:
            return
        text = _fit(self._line(), _columns(self._stream) - 1, self._ellipsis)
        if text != self._drawn:
            self._write(f"{CLEAR_LINE}{self._coloured(text, self._state)}")
            self._drawn = text

    def _line(self) -> str:
        parts = [self._state]
        if self._attempt > 1:
            parts.append(f"attempt {self._attempt} of {self._max_attempts}")
        if self._waiting:
            parts.append(self._waiting.translate(_CONTROL))
        progress = self._progress
        if progress is not None:
            current, total = progress.current, progress.total
            if total:
                full = round(min(1.0, max(0.0, current / total)) * BAR_COLUMNS)
                bar = self._full * full + self._empty * (BAR_COLUMNS - full)
                parts.append(f"{bar} {current:g}/{total:g}")
            else:
                parts.append(f"{current:g}")
            if progress.message:
                parts.append(progress.message.translate(_CONTROL))
        return f" {self._dot} ".join(parts)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def _coloured(self, text: str, colour: str) -> str:
        code = COLOURS.get(colour)
        return f"\x1b[{code}m{text}\x1b[0m" if self._colours and code else text


def summary(job: Job) -> str:
    """How a final job ended, on one line."""
    text = job.state
    if job.state == "failed" and job.error is not None:
        text += f" ({job.error.type}): {job.error.message}"
    elif job.finished_at is not None:
        text += f" after {(job.finished_at - job.submitted_at).total_seconds():.1f} s"
    if job.state == "succeeded" and job.result is not None:
        result = msgspec.json.encode(job.result).decode()
        text += f": {result[:MAX_VALUE_CHARS]}"
        if len(result) > MAX_VALUE_CHARS:
            text += f" ({len(result)} characters)"
    return text


def escaped(item: bytes) -> bytes:
    """The same JSON without control characters that a terminal would obey."""
    return item.decode(errors="replace").translate(_ESCAPED).encode()


def _log_line(entry: Entry) -> tuple[str, str]:
    """The text of a log entry and the name of its colour."""
    fields = entry.data
    if not isinstance(fields, dict):
        return str(fields)[:MAX_VALUE_CHARS], ""
    level, message = str(fields.pop("level", "info")), fields.pop("message", "")
    rest = "".join(
        f" {name}={msgspec.json.encode(value).decode()[:MAX_VALUE_CHARS]}"
        for name, value in fields.items()
    )
    return f"{entry.at.astimezone():%H:%M:%S} {level:<7} {message}{rest}", level


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_COLUMNS
    except OSError:
        return DEFAULT_COLUMNS


def _fit(text: str, columns: int, ellipsis: str) -> str:
    """The text cut to a width in columns; East Asian wide characters take two."""
    width = 0
    for place, character in enumerate(text):
        width += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if width > columns:
            return text[: max(0, place - 1)] + ellipsis
    return text
