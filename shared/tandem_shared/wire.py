"""What the client and the way out agree on: requests, answers that are still open, and how long to try.

`shared/tandem_shared/client.py` has the wires, `shared/tandem_shared/conversation.py` what is said over them.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import msgspec

from tandem_shared.answers import Entry
from tandem_shared.errors import Malformed, Unavailable
from tandem_shared.problems import Problem
from tandem_shared.transfers import Source

T = TypeVar("T")

ANSWER = 30.0  # seconds between two pieces of an answer
SHORTEST, LONGEST = 0.1, 2.0  # seconds between two tries
LINE = 16 << 20  # bytes of one line of a stream; an item has at most 1 MiB


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


class Patience:
    """How long one call goes on without being heard; `deadline` is on the monotonic clock."""

    def __init__(
        self, wire: Wire, seconds: float, told: Callable[[str], None] | None, deadline: float | None = None
    ) -> None:
        self._wire, self._seconds, self._told, self._deadline = wire, seconds, told, deadline
        self._since: float | None = None
        self._tries = 0

    def heard(self) -> None:
        """Begin again."""
        self._since, self._tries = None, 0

    async def again(self, fault: Lost | Problem, floor: float = 0.0) -> None:
        """Return when it is time for another try. Raises Unavailable, or TimeoutError at the deadline."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        pause = max(floor, min(LONGEST, SHORTEST * 2.0 ** min(self._tries, 10)) * random.random())
        self._tries += 1
        if self._deadline is not None and now + pause > self._deadline:
            raise TimeoutError(f"{self._wire.url} did not answer in time: {fault}")
        if now + pause > self._since + self._seconds:
            raise Unavailable(f"{self._wire.url} does not answer: {fault}") from fault
        if self._told is not None:
            self._told(str(fault))
        await self._wire.pause(pause)


class Lines:
    """Puts the entries of NDJSON together from pieces; what a cut leaves of a line is lost with this object."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> tuple[list[Entry], bool]:
        """The entries that are whole by now, and whether any line is. Raises Malformed, Lost for what is none."""
        first, *others = piece.split(b"\n")
        self._rest.append(first)
        self._size += len(first)
        if self._size > LINE:
            raise Malformed(f"a line of the stream has more than {LINE} bytes")
        if not others:
            return [], False
        lines = [b"".join(self._rest), *others]
        self._rest, self._size = [lines.pop()], len(others[-1])
        try:
            return [_entry.decode(line) for line in lines if line.strip()], True
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Lost(f"the stream has a line that is no entry: {error}") from None


_entry = msgspec.json.Decoder(Entry)
