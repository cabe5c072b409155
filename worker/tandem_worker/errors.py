"""The errors with which a task decides what happens next; others are retried by policy.

TaskError                    a failure with its own type, and advice on retrying
├── Retry                    try again, no sooner than a time that the task chooses
└── Permanent                do not try again
Misuse                       a TypeError that no other attempt can cure
"""

import re

from tandem_shared.times import Duration, parse_duration

_TYPE = re.compile(r"[a-z][a-z0-9_]*|exception:[A-Za-z_][A-Za-z0-9_]*")


class TaskError(Exception):
    """A failure that clients see as `error`, with its `type` and `message`.

    The type is a `lower_case` word, or `exception:<Class>`. If the failure is `retryable`, the
    job's policy decides on another attempt, which starts no sooner than `after` seconds from now.
    The message reaches clients, so it must not contain secrets, tracebacks or paths of the server.
    """

    def __init__(
        self, type: str, message: str, retryable: bool, after: float | None = None
    ) -> None:
        if not isinstance(type, str) or _TYPE.fullmatch(type) is None:
            raise ValueError(
                f"{type!r} is not an error type; use a lower_case word such as card_declined,"
                " or exception:<Class>"
            )
        super().__init__(message)
        self.type = type
        self.message = message
        self.retryable = retryable
        self.after = after


class Retry(TaskError):
    """Asks for another attempt after a duration (seconds or `"30s"`), by default by the policy.

    Its type is `retry`. It counts towards `max_attempts` like any failure.
    """

    def __init__(self, after: Duration | None = None, message: str | None = None) -> None:
        delay = None if after is None else parse_duration(after)
        super().__init__(
            "retry", message or "the task asked for another attempt", retryable=True, after=delay
        )


class Permanent(TaskError):
    """Fails the job without a retry: `raise Permanent("card_declined", "the bank said no")`."""

    def __init__(self, type: str, message: str) -> None:
        super().__init__(type, message, retryable=False)


class Misuse(TypeError):
    """A mistake in a task's code, in a sentence that says what to do; it is never retried."""
