"""What the client and the way out agree on: requests, answers that are still open, and how long to try.

`shared/tandem_jobs/client/client.py` has the wires, `shared/tandem_jobs/client/protocol.py` what is
said over them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from tandem_jobs.client.transfers import Source

T = TypeVar("T")

ANSWER = 30.0  # seconds between two pieces of an answer


class Lost(Exception):
    """A connection that could not be made, or that broke or fell silent; says which."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `path` is below the base URL, or a whole URL elsewhere, which is never sent the key."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Source = b""
    timeout: float = ANSWER


class Opened(Protocol):
    """An answer whose body has not been read."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...  # names in lower case
    async def read(self) -> bytes:
        """The next piece, empty at the end. Raises Lost."""

    async def close(self) -> None: ...


class Wire(Protocol):
    """The way out."""

    url: str  # the base

    async def open(self, request: Request) -> Opened:
        """Raises Lost."""

    async def pause(self, seconds: float) -> None: ...
    async def call(self, function: Callable[[], T]) -> T:
        """What the function, which blocks on a file, returns."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is no refusal."""

    status: int
    headers: Mapping[str, str]
    body: bytes
