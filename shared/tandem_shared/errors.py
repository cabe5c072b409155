"""Everything that can go wrong inside Tandem, as one tree.

TandemError
├── Refused                  the request cannot be granted as it stands; asking again does not help
│   ├── Malformed            what cannot be read at all: broken JSON, a header that is none
│   ├── Invalid              fields the contract refuses, with a JSON pointer each
│   ├── UnknownTask          no worker ever published a task of this name
│   ├── KeyReused            an idempotency key came again with another task or payload
│   ├── TooLarge             a body, an item or an upload above its limit
│   ├── NotFound             no such job, file or task (for this tenant)
│   ├── BadCursor            a stream position that this job never gave out
│   └── Conflict             what does not fit the state of the thing: an upload that is not
  complete, or already is
│       └── OffsetMismatch   bytes for another place of an upload than the one where it goes on
├── Unavailable              Redis, the file store or, to a client, the API does not answer; asking
  again helps
│   └── Full                 nothing more enters before something has ended; asking again helps, but
  not at once
└── Misconfigured            a setting that stops the start, with its name and why

They say what happened; the edge that reports them says what that means there
(`api/tandem_api/http/problems.py` has the status codes). A client of the API has three more of the
tree, see `shared/tandem_jobs/client/errors.py`.
"""

from collections.abc import Sequence


class TandemError(Exception):
    """The root: one handler at the edge is enough."""


class Refused(TandemError):
    """The request cannot be granted as it stands."""


class Malformed(Refused):
    """What cannot be read at all: broken JSON, a header or parameter that is none."""


class Invalid(Refused):
    """Fields the contract refuses: `errors` holds (RFC 6901 pointer, one sentence) pairs."""

    def __init__(self, errors: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{pointer}: {detail}" for pointer, detail in errors))
        self.errors = tuple(errors)


class UnknownTask(Refused):
    """No worker ever published a task of this name."""

    def __init__(self, task: str) -> None:
        super().__init__(f"no worker has published a task named {task!r}")
        self.task = task


class KeyReused(Refused):
    """An idempotency key came again with another task or payload."""

    def __init__(self) -> None:
        super().__init__("this idempotency key was used for another task or payload")


class TooLarge(Refused):
    """A body, an item or an upload above its limit, in bytes or in items."""

    def __init__(self, what: str, limit: int, unit: str = "bytes") -> None:
        super().__init__(f"{what} exceeds the limit of {limit} {unit}")
        self.limit = limit


class NotFound(Refused):
    """No such job, file or task for this tenant; whether another tenant has one is not said."""

    def __init__(self, kind: str, id: str) -> None:
        super().__init__(f"no {kind} with the id {id!r}")
        self.kind = kind


class BadCursor(Refused):
    """A stream position that this job never gave out."""

    def __init__(self) -> None:
        super().__init__("this position is not one of the job's stream")


class Conflict(Refused):
    """What does not fit the state of the thing that it is asked of."""


class OffsetMismatch(Conflict):
    """Bytes for another place of an upload than `expected`, the one where it goes on."""

    def __init__(self, expected: int, provided: int) -> None:
        super().__init__(f"the upload goes on at byte {expected}, not at {provided}")
        self.expected, self.provided = expected, provided


class Unavailable(TandemError):
    """Redis, the file store or, to a client, the API does not answer; asking again helps."""


class Full(Unavailable):
    """Nothing more enters a queue before something in it has ended, or memory is free: no use in trying at once."""


class Misconfigured(TandemError):
    """A setting that stops the start."""
