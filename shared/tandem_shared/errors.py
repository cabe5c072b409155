"""Everything that can go wrong inside Tandem, as one tree.

TandemError
├── Refused                  the request cannot be granted as it stands; a repeat does not help
│   ├── Malformed            cannot be parsed at all: broken JSON, an invalid header or parameter
│   ├── Invalid              fields violate the contract, with a JSON pointer each
│   ├── UnknownTask          no worker has ever published a task of this name
│   ├── KeyReused            an idempotency key came with another task or payload than before
│   ├── TooLarge             a body, an item or an upload exceeds its limit
│   ├── OtherUploadProtocol  an upload that speaks another protocol for parts than ours
│   ├── NotFound             no such job, file or task for this tenant
│   ├── BadCursor            not a position in this job's stream
│   └── Conflict             does not fit the current state, such as an upload not yet complete
│       └── OffsetMismatch   bytes for another offset than the one where the upload continues
├── Unavailable              a service does not answer (Redis, the file store; for clients, the
│   │                        API); a retry helps
│   └── Full                 no room until a job ends or memory is free; an immediate retry does
│                            not help
└── Misconfigured            a setting is invalid: the process does not start, and says why

These errors say what happened. The edge that reports them decides what that means to its caller
(`api/tandem_api/http/problems.py` has the status codes). The client adds three errors to the tree,
see `shared/tandem_jobs/client/errors.py`.
"""

from collections.abc import Sequence


class TandemError(Exception):
    """The root of all errors that Tandem raises."""


class Refused(TandemError):
    """The request cannot be granted as it stands."""


class Malformed(Refused):
    """The input cannot be parsed at all."""


class Invalid(Refused):
    """Fields violate the contract: `errors` holds (RFC 6901 pointer, one sentence) pairs."""

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{pointer}: {detail}" for pointer, detail in errors))
        self.errors = tuple(errors)


class UnknownTask(Refused):
    """No worker has ever published a task of this name."""

    def __init__(self, task: str, hint: str = "") -> None:
        super().__init__(f"no worker has published a task named {task!r}{hint}")


class OtherUploadProtocol(Refused):
    """An upload speaks another protocol for uploads in parts than the service does."""


class KeyReused(Refused):
    """An idempotency key came with another task or payload than before."""

    def __init__(self) -> None:
        super().__init__("this idempotency key was used for another task or payload")


class TooLarge(Refused):
    """A body, an item or an upload exceeds its limit, in bytes unless `unit` says otherwise."""

    def __init__(self, what: str, limit: int, unit: str = "bytes") -> None:
        super().__init__(f"{what} exceeds the limit of {limit} {unit}")
        self.limit = limit


class NotFound(Refused):
    """No such job, file or task for this tenant; never reveals what other tenants have."""

    def __init__(self, kind: str, id: str) -> None:
        super().__init__(f"no {kind} with id {id!r}")


class BadCursor(Refused):
    """Not a position in this job's stream."""

    def __init__(self) -> None:
        super().__init__("not a position in this job's stream")


class Conflict(Refused):
    """The request does not fit the current state of what it is about."""


class OffsetMismatch(Conflict):
    """Bytes were `provided` for another offset than `expected`, where the upload continues."""

    def __init__(self, expected: int, provided: int) -> None:
        super().__init__(f"the upload continues at byte {expected}, not {provided}")
        self.expected, self.provided = expected, provided


class Unavailable(TandemError):
    """A service does not answer: Redis, the file store or, for clients, the API. A retry helps."""


class Full(Unavailable):
    """No room until a job ends or memory is free; an immediate retry does not help."""


class Misconfigured(TandemError):
    """A setting is invalid: the process does not start."""
