"""What went wrong, as clients may know it: a type, one message, and whether another attempt is worth it.

A message holds no traceback, no secret and no path of the server, whatever text an exception
brought.
"""

import re
from typing import NamedTuple

from pydantic import ValidationError

from tandem_shared.jobs.record import Failure
from tandem_shared.logs import mask_secrets
from tandem_worker.errors import TaskError

LONGEST = 1000  # characters of a message
_PATH = re.compile(r"(?:(?<=file://)|(?<![\w/:.]))(?:/[\w.@+~-]+){2,}/?")
_SECRET = re.compile(
    r"(?i)\b(password|passwd|pwd|secret|api_?key|access_?key)(['\"]?\s*[:=]\s*)(['\"]?)[^\s'\",;&)]+"
)
_TRACEBACK = "Traceback (most recent call last):"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class Fault(NamedTuple):
    """A failure before anybody has decided what follows from it; `after` seconds are the least until another try."""

    type: str
    message: str
    retryable: bool
    after: float | None = None

    def of(self, attempt: int) -> Failure:
        """The failure of this attempt."""
        return Failure(
            type=self.type, message=self.message, retryable=self.retryable, attempt=attempt
        )


def timed_out(timeout: float, *, stuck: bool = False) -> Fault:
    """The attempt took longer than it may: another one may be quicker. `stuck`: it had to wait to say more."""
    why = "; its output waited for the file store" if stuck else ""
    return Fault(
        "timeout", f"the attempt took longer than its timeout of {timeout:g} s{why}", retryable=True
    )


def broken() -> Fault:
    """The worker itself failed around the attempt; its log says how."""
    return Fault("internal", "the worker failed outside of the task's code", retryable=True)


def invalid_payload(error: ValidationError) -> Fault:
    """The payload does not fit the task's type: no other attempt will change that. Values are not repeated."""
    first = error.errors(include_url=False, include_context=False, include_input=False)
    lines = (
        f"{_pointer(one['loc'])}: {tidy(one['msg'].removeprefix('Value error, '))}"
        for one in first[:10]
    )
    return Fault("invalid_payload", _cut("; ".join(lines)), retryable=False)


def _pointer(place: tuple[int | str, ...]) -> str:
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in place)  # RFC 6901
    return _plain("".join(f"/{part}" for part in ("payload", *parts)))


def fault(error: BaseException) -> Fault:
    """What an exception of a task's code says to clients."""
    if isinstance(error, TaskError):
        return Fault(error.type, tidy(error.message), error.retryable, error.after)
    name = type(error).__name__
    return Fault(
        f"exception:{name}",
        _words(error) or f"the task raised {name} without a message",
        retryable=True,
    )


def _words(error: BaseException) -> str:
    try:
        # The text of an OSError would name the file.
        return tidy(str(error.strerror if isinstance(error, OSError) and error.strerror else error))
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything
        return ""


def tidy(message: str) -> str:
    """One line, readable, without secrets, paths and tracebacks, of at most LONGEST characters."""
    text = message[: 20 * LONGEST]
    before, trace, after = text.partition(_TRACEBACK)
    if trace:
        # The last line of a traceback is the exception itself.
        text = before.strip() or (after.strip().splitlines() or [""])[-1]
    text = _SECRET.sub(r"\1\2\3***", mask_secrets(text))
    text = _PATH.sub(lambda match: f"…/{match[0].rstrip('/').rpartition('/')[2]}", text)
    return _cut(_plain(text))


def _plain(text: str) -> str:
    return " ".join(_CONTROL.sub(" ", text).split()).encode(errors="backslashreplace").decode()


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
