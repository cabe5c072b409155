"""The seam between the client's calls and the HTTP library: requests, responses and transports.

`shared/tandem_jobs/client/http.py` has the two transports, `shared/tandem_jobs/client/protocol.py`
the calls that are made over them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from tandem_jobs.client.transfers import UploadSource

T = TypeVar("T")

READ_TIMEOUT_SECONDS = 30.0  # without a byte of the response


class ConnectionLost(Exception):
    """A connection that could not be made, that broke or that stalled."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. A `path` that is the URL of another server is sent without the key."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | UploadSource = b""
    timeout: float = READ_TIMEOUT_SECONDS


class Response(Protocol):
    """A response whose body has not been read."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...  # names in lower case
    async def read(self) -> bytes:
        """The next bytes of the body, empty at its end. Raises ConnectionLost."""

    async def aclose(self) -> None: ...


class Transport(Protocol):
    """Sends requests and sleeps, either blocking or in an event loop."""

    url: str  # the base URL

    async def send(self, request: Request) -> Response:
        """Raises ConnectionLost."""

    async def sleep(self, seconds: float) -> None: ...
    async def run(self, function: Callable[[], T]) -> T:
        """The result of a function that blocks on a file."""

    async def aclose(self) -> None: ...
