"""What went wrong in an attempt, as clients may see it: a type, a message, whether to retry.

A message contains no traceback, no secret and no path of the server, whatever text an exception
has.
"""

import re
from typing import NamedTuple

from pydantic import ValidationError

from tandem_shared.errors import Unavailable
from tandem_shared.jobs.view import Failure
from tandem_shared.logs import mask_secrets
from tandem_worker.errors import Misuse, TaskError

MAX_MESSAGE_CHARS = 1000
_PATH = re.compile(r"(?:(?<=file://)|(?<![\w/:.]))(?:/[\w.@+~-]+){2,}/?")
_SECRET = re.compile(
    r"(?i)\b(password|passwd|pwd|secret|api_?key|access_?key)(['\"]?\s*[:=]\s*)(['\"]?)[^\s'\",;&)]+"
)
_TRACEBACK = "Traceback (most recent call last):"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class Fault(NamedTuple):
    """A failure, before the retry policy is applied; `after`: minimum seconds until a retry."""

    type: str
    message: str
    retryable: bool
    after: float | None = None

    def to_failure(self, attempt: int) -> Failure:
        """The failure as the record of the job holds it."""
        return Failure(
            type=self.type, message=self.message, retryable=self.retryable, attempt=attempt
        )


def timed_out(timeout: float, *, stuck: bool = False, ignored: bool = False) -> Fault:
    """An attempt that reached its timeout.

    `stuck`: its output waited for the file store then. `ignored`: its code went on all the same.
    """
    why = "; its output was waiting for the file store" if stuck else ""
    if ignored:
        why = ", and its code ignored that"
    message = f"the attempt exceeded its timeout of {timeout:g} s{why}"
    return Fault("timeout", message, retryable=True)


def internal_error() -> Fault:
    """A failure of the worker itself around an attempt; the worker's log has the reason."""
    return Fault("internal", "the worker failed outside the task's code", retryable=True)


def invalid_payload(error: ValidationError) -> Fault:
    """A payload that does not fit the task's type, without its values; it is never retried."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    lines = (
        f"{_pointer(one['loc'])}: {sanitize(one['msg'].removeprefix('Value error, '))}"
        for one in errors[:10]
    )
    return Fault("invalid_payload", _cut("; ".join(lines)), retryable=False)


def _pointer(location: tuple[int | str, ...]) -> str:
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in location)  # RFC 6901
    return _one_line("".join(f"/{part}" for part in ("payload", *parts)))


def to_fault(error: BaseException) -> Fault:
    """An exception of a task's code, as clients may see it."""
    if isinstance(error, TaskError):
        return Fault(error.type, sanitize(error.message), error.retryable, error.after)
    if isinstance(error, Unavailable):
        return Fault("unavailable", sanitize(str(error)), retryable=True)
    if isinstance(error, Misuse):
        return Fault("exception:TypeError", sanitize(str(error)), retryable=False)
    name = type(error).__name__
    message = _text(error) or f"the task raised {name} without a message"
    return Fault(f"exception:{name}", message, retryable=True)


def _text(error: BaseException) -> str:
    try:
        # str() of an OSError would name the file.
        return sanitize(
            str(error.strerror if isinstance(error, OSError) and error.strerror else error)
        )
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything
        return ""


def sanitize(message: str) -> str:
    """The message on one short line, without secrets, paths of the server and tracebacks."""
    text = message[: 20 * MAX_MESSAGE_CHARS]
    before, traceback, after = text.partition(_TRACEBACK)
    if traceback:
        # The last line of a traceback is the exception itself.
        text = before.strip() or (after.strip().splitlines() or [""])[-1]
    text = _SECRET.sub(r"\1\2\3***", mask_secrets(text))
    text = _PATH.sub(lambda match: f"…/{match[0].rstrip('/').rpartition('/')[2]}", text)
    return _cut(_one_line(text))


def _one_line(text: str) -> str:
    return " ".join(_CONTROL.sub(" ", text).split()).encode(errors="backslashreplace").decode()


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARS else f"{text[: MAX_MESSAGE_CHARS - 1]}…"
