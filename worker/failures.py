"""What went wrong, as clients may know it: a type, one message, and whether another attempt is worth it.

A message holds no traceback, no secret and no path of the server, whatever text an exception brought.
"""

import re
from typing import NamedTuple

from pydantic import ValidationError

from shared.jobs import Failure
from shared.telemetry import without_secrets
from worker.errors import TaskError

LONGEST = 1000  # characters of a message
_PATH = re.compile(r"(?<![\w/:.])(?:/[\w.@+~-]+){2,}/?")


class Fault(NamedTuple):
    """A failure before anybody has decided what follows from it; `after` seconds are the least until another try."""

    type: str
    message: str
    retryable: bool
    after: float | None = None

    def of(self, attempt: int) -> Failure:
        """The failure of this attempt."""
        return Failure(type=self.type, message=self.message, retryable=self.retryable, attempt=attempt)


def timed_out(timeout: float) -> Fault:
    """The attempt took longer than it may: another one may be quicker."""
    return Fault("timeout", f"the attempt took longer than its timeout of {timeout:g} s", retryable=True)


def invalid_payload(error: ValidationError) -> Fault:
    """The payload does not fit the task's type: no other attempt will change that. Values are not repeated."""
    first = error.errors(include_url=False, include_context=False, include_input=False)
    pointers = "; ".join(
        f"/payload{''.join(f'/{part}' for part in one['loc'])}: {one['msg'].removeprefix('Value error, ')}"
        for one in first[:10]
    )
    return Fault("invalid_payload", tidy(pointers), retryable=False)


def fault(error: BaseException) -> Fault:
    """What an exception of a task's code says to clients."""
    if isinstance(error, TaskError):
        return Fault(error.type, tidy(error.message), error.retryable, error.after)
    # The text of an OSError would name the file.
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    name = type(error).__name__
    return Fault(f"exception:{name}", tidy(message) or f"the task raised {name} without a message", retryable=True)


def tidy(message: str) -> str:
    """One line, readable, without secrets and paths, of at most LONGEST characters."""
    text = " ".join(without_secrets(message[: 20 * LONGEST]).split())
    text = _PATH.sub(lambda match: f"…/{match[0].rstrip('/').rpartition('/')[2]}", text)
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
