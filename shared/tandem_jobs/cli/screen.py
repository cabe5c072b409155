"""What a person sees of a job on stderr: log lines, and on a terminal one live line below them."""

import os
import unicodedata
from typing import TextIO

import msgspec

from tandem_jobs.client.models import Entry, Job, Progress

WIDTH = 24  # columns of the bar
SHOWN = 300  # characters of a value on a line
COLOURS = {
    "succeeded": 32,
    "failed": 31,
    "cancelled": 33,
    "error": 31,
    "critical": 31,
    "warning": 33,
    "debug": 2,
}
# What would move the cursor or recolour the terminal, of whoever wrote the text.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0))}
_ESCAPED = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


class Screen:
    """One job's lines. Nothing is drawn, and no colour used, where there is no terminal, or for TERM=dumb.

    NO_COLOR (https://no-color.org) is respected.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._colours = self._live and not os.environ.get("NO_COLOR")
        utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
        self._full, self._empty, self._dot, self._cut = (
            ("█", "░", "·", "…") if utf8 else ("#", "-", "-", "~")
        )
        self._state, self._attempts = "", (0, 0)
        self._progress: Progress | None = None
        self._drawn = ""
        self._trouble = ""

    # ------------------------------------------------------------------------------------- one line

    def say(self, text: str, colour: str = "") -> None:
        """A line that stays, above the live one."""
        self.clear()
        print(self._coloured(text.translate(_CONTROL), colour), file=self._stream, flush=True)

    def trouble(self, reason: str) -> None:
        """Why a call is tried again; said once until something comes."""
        if reason != self._trouble:
            self._trouble = reason
            self.say(f"no answer ({reason}); trying again", "warning")

    def clear(self) -> None:
        """Take the live line away."""
        if self._drawn:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()
            self._drawn = ""

    # ------------------------------------------------------------------------------------ one entry

    def show(self, entry: Entry) -> None:
        """Everything but output."""
        self._trouble = ""
        if entry.type == "log":
            self.say(*_log(entry))
        elif entry.type == "progress":
            self._progress = entry.progress
        elif entry.type in ("state", "end"):
            self._changed(entry.job, final=entry.type == "end")

    def _changed(self, job: Job, *, final: bool) -> None:
        new = job.state != self._state or job.attempt != self._attempts[0]
        if job.attempt != self._attempts[0]:
            self._progress = None
        self._state, self._attempts = job.state, (job.attempt, job.max_attempts)
        if final:
            self.say(*ending(job))
        elif new and job.state == "retrying" and job.error is not None:
            self.say(
                f"attempt {job.attempt} failed ({job.error.type}): {job.error.message}", "warning"
            )
        elif new and not self._live and not job.done:
            self.say(f"{job.state}, attempt {job.attempt}" if job.attempt else job.state)

    def draw(self) -> None:
        """The live line as it is by now."""
        if not self._live or not self._state:
            return
        text = _fitting(self._line(), _columns(self._stream) - 1, self._cut)
        if text != self._drawn:
            self._stream.write(f"\r\x1b[2K{self._coloured(text, self._state)}")
            self._stream.flush()
            self._drawn = text

    def _line(self) -> str:
        attempt, attempts = self._attempts
        parts = [self._state]
        if attempt > 1:
            parts.append(f"attempt {attempt} of {attempts}")
        progress = self._progress
        if progress is not None:
            if progress.total:
                share = min(1.0, max(0.0, progress.current / progress.total))
                full = round(share * WIDTH)
                bar = self._full * full + self._empty * (WIDTH - full)
                parts.append(f"{bar} {progress.current:g}/{progress.total:g}")
            else:
                parts.append(f"{progress.current:g}")
            if progress.message:
                parts.append(progress.message.translate(_CONTROL))
        return f" {self._dot} ".join(parts)

    def _coloured(self, text: str, name: str) -> str:
        code = COLOURS.get(name)
        return f"\x1b[{code}m{text}\x1b[0m" if self._colours and code else text


def ending(job: Job) -> tuple[str, str]:
    """How a final job ended, on one line, and its colour's name."""
    text = job.state
    if job.state == "failed" and job.error is not None:
        text += f" ({job.error.type}): {job.error.message}"
    elif job.finished_at is not None:
        text += f" after {(job.finished_at - job.submitted_at).total_seconds():.1f} s"
    if job.state == "succeeded" and job.result is not None:
        result = msgspec.json.encode(job.result).decode()
        text += f": {result if len(result) <= SHOWN else f'{result[:SHOWN]} ({len(result)} characters)'}"
    return text, job.state


def harmless(item: bytes) -> bytes:
    """The same JSON, with nothing in it that a terminal would obey."""
    return item.decode(errors="replace").translate(_ESCAPED).encode()


def _log(entry: Entry) -> tuple[str, str]:
    fields = entry.data
    if not isinstance(fields, dict):
        return str(fields)[:SHOWN], ""
    level, message = str(fields.pop("level", "info")), fields.pop("message", "")
    more = "".join(
        f" {name}={msgspec.json.encode(value).decode()[:SHOWN]}" for name, value in fields.items()
    )
    return f"{entry.at.astimezone():%H:%M:%S} {level:<7} {message}{more}", level


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def _fitting(text: str, columns: int, cut: str) -> str:
    width = 0
    for place, character in enumerate(text):
        width += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if width > columns:
            return text[: max(0, place - 1)] + cut
    return text
