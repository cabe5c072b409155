"""A Python client of the API, blocking and for asyncio: `docs/client.md` shows it.

    with Client() as client:
        job = client.submit("http.request", {"url": "https://example.org/"})
        print(client.result(job))

Nothing here knows the contract: that is `shared/tandem_shared/conversation.py`, spoken over one of the two wires below.
"""

import asyncio
import ipaddress
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx2

from tandem_shared.answers import Attempt, Entry, File, Job, Progress, Reason
from tandem_shared.conversation import Conversation, Downloadable, Named
from tandem_shared.errors import Malformed, Misconfigured, TandemError, Unavailable
from tandem_shared.problems import FieldError, JobCancelled, JobFailed, JobUnsuccessful, Problem
from tandem_shared.transfers import Source
from tandem_shared.wire import Lost, Request

__all__ = [
    "AsyncClient",
    "Attempt",
    "Client",
    "Entry",
    "FieldError",
    "File",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobUnsuccessful",
    "Malformed",
    "Misconfigured",
    "Problem",
    "Progress",
    "Reason",
    "TandemError",
    "Unavailable",
]

T = TypeVar("T")

URL, API_KEY = "TANDEM_URL", "TANDEM_API_KEY"  # the environment's, for what is not given
DEFAULT_URL = "http://127.0.0.1:8000"  # of `tandem dev` and `tandem api`
CONNECT, WRITE, POOL = 5.0, 30.0, 30.0  # seconds
CONNECTIONS = httpx2.Limits(max_connections=1000, max_keepalive_connections=20)


class AsyncClient(Conversation):
    """A client for asyncio: every call is a coroutine, every stream an asynchronous generator.

    `url` and `api_key` are TANDEM_URL (http://127.0.0.1:8000) and TANDEM_API_KEY if they are not given. Raises
    Misconfigured for a URL that is none.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        patience: float = 60.0,
        told: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(_Suspending(*_address(url, api_key)), patience, told)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Client:
    """A client that blocks; several threads may share one. Each method is that of AsyncClient."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        patience: float = 60.0,
        told: Callable[[str], None] | None = None,
    ) -> None:
        self._said = Conversation(_Blocking(*_address(url, api_key)), patience, told)

    def submit(
        self,
        task: str,
        payload: Any = None,
        *,
        idempotency_key: str | None = None,
        wait: float | None = None,
        **options: Any,
    ) -> Job:
        """The job, accepted once; see AsyncClient."""
        return _now(self._said.submit(task, payload, idempotency_key=idempotency_key, wait=wait, **options))

    def get(self, job: Named) -> Job:
        return _now(self._said.get(job))

    def wait(self, job: Named, timeout: float | None = None) -> Job:
        """The final job. Raises TimeoutError."""
        return _now(self._said.wait(job, timeout))

    def result(self, job: Named, timeout: float | None = None) -> Any:
        """What the job returned. Raises JobFailed, JobCancelled, TimeoutError."""
        return _now(self._said.result(job, timeout))

    def cancel(self, job: Named) -> Job:
        return _now(self._said.cancel(job))

    def replay(self, job: Named, *, idempotency_key: str | None = None) -> Job:
        """A new job like this one; see AsyncClient."""
        return _now(self._said.replay(job, idempotency_key=idempotency_key))

    def stream(self, job: Named, types: str | Iterable[str] = (), after: str | None = None) -> Generator[Entry]:
        """Each entry once and in order, `end` last; see AsyncClient."""
        for portion in self.portions(job, types, after):
            yield from portion

    def portions(self, job: Named, types: str | Iterable[str] = (), after: str | None = None) -> Generator[list[Entry]]:
        """The same, in lists of what came together."""
        portions = self._said.portions(job, types, after)
        try:
            while (portion := _now(_next(portions))) is not None:
                yield portion
        finally:
            _now(portions.aclose())

    def upload(
        self, source: str | Path | IO[bytes], *, name: str | None = None, content_type: str | None = None
    ) -> File:
        """An upload of a file; see AsyncClient."""
        return _now(self._said.upload(source, name=name, content_type=content_type))

    def download(self, file: Downloadable, to: str | Path | IO[bytes]) -> int:
        """Write a file to a path or an open file; its size in bytes."""
        return _now(self._said.download(file, to))

    def close(self) -> None:
        _now(self._said.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _address(url: str | None, api_key: str | None) -> tuple[str, str]:
    url = url or os.environ.get(URL) or DEFAULT_URL
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or "?" in url or "#" in url:
        raise Misconfigured(f"{URL}: give http://host:port or https://…")
    key = api_key or os.environ.get(API_KEY) or ""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise Misconfigured(f"{API_KEY}: is no key")
    return url.rstrip("/"), key


# --------------------------------------------------------------------------------------------------------------- wires


def _now(call: Coroutine[Any, Any, T]) -> T:
    """What a coroutine over the blocking wire returns: it never waits for an event loop."""
    try:
        call.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        call.close()
    raise RuntimeError("the blocking wire was suspended")


async def _next(items: AsyncIterator[T]) -> T | None:
    return await anext(items, None)


def _options(url: str) -> dict[str, Any]:
    host = urlsplit(url).hostname or ""
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    # No proxy of the environment is asked for this machine.
    return {"timeout": httpx2.Timeout(CONNECT), "limits": CONNECTIONS, "trust_env": not here}


def _request(client: httpx2.Client | httpx2.AsyncClient, base: str, key: str, request: Request) -> httpx2.Request:
    below = request.path.startswith("/")
    # As it comes: nothing is unpacked twice, and a compressed stream would come late.
    headers = {"Accept-Encoding": "identity", "User-Agent": "tandem-client", **request.headers}
    if key and below:
        headers["Authorization"] = f"Bearer {key}"
    content: Any = request.body
    if isinstance(content, Source):
        content = _pieces(content) if isinstance(client, httpx2.Client) else _suspended_pieces(content)
    timeout = httpx2.Timeout(connect=CONNECT, read=request.timeout, write=WRITE, pool=POOL)
    try:
        return client.build_request(
            request.method,
            base + request.path if below else request.path,
            params=dict(request.query) or None,
            headers=[(name.encode(), value.encode()) for name, value in headers.items()],
            content=content or None,
            timeout=timeout,
        )
    except httpx2.InvalidURL as error:
        raise Malformed(f"{request.path[:200]}: {error}") from None


def _pieces(source: Source) -> Iterator[bytes]:
    while piece := source.read():
        yield piece


async def _suspended_pieces(source: Source) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(source.read):
        yield piece


def _fault(error: httpx2.TransportError) -> Exception:
    if isinstance(error, httpx2.LocalProtocolError | httpx2.UnsupportedProtocol):
        return Malformed(str(error))
    silent: dict[type[httpx2.TransportError], str] = {
        httpx2.ConnectTimeout: "nobody answers",
        httpx2.ReadTimeout: "it fell silent",
        httpx2.WriteTimeout: "it takes no more bytes",
    }
    return Lost(silent.get(type(error)) or _system(error) or str(error) or type(error).__name__)


def _system(error: BaseException | None) -> str:
    """What the operating system calls it, if it is behind it."""
    while error is not None:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, OSError) and error.errno:
            return os.strerror(error.errno) if error.errno > 0 else error.strerror or ""
        error = error.__cause__ or error.__context__
    return ""


class _BlockingOpened:
    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._pieces = response.iter_raw()
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    async def read(self) -> bytes:
        try:
            return next(self._pieces, b"")
        except httpx2.TransportError as error:
            raise _fault(error) from None

    async def close(self) -> None:
        self._response.close()


class _Blocking:
    def __init__(self, url: str, key: str) -> None:
        self.url, self._key = url, key
        self._http = httpx2.Client(**_options(url))

    async def open(self, request: Request) -> _BlockingOpened:
        try:
            return _BlockingOpened(self._http.send(_request(self._http, self.url, self._key, request), stream=True))
        except httpx2.TransportError as error:
            raise _fault(error) from None

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - blocking is what this wire is for

    async def call(self, function: Callable[[], T]) -> T:
        return function()

    async def close(self) -> None:
        self._http.close()


class _SuspendingOpened:
    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._pieces = response.aiter_raw()
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    async def read(self) -> bytes:
        try:
            return await anext(self._pieces, b"")
        except httpx2.TransportError as error:
            raise _fault(error) from None

    async def close(self) -> None:
        await self._response.aclose()


class _Suspending:
    def __init__(self, url: str, key: str) -> None:
        self.url, self._key = url, key
        self._http = httpx2.AsyncClient(**_options(url))

    async def open(self, request: Request) -> _SuspendingOpened:
        try:
            answer = await self._http.send(_request(self._http, self.url, self._key, request), stream=True)
            return _SuspendingOpened(answer)
        except httpx2.TransportError as error:
            raise _fault(error) from None

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def call(self, function: Callable[[], T]) -> T:
        return await asyncio.to_thread(function)

    async def close(self) -> None:
        await self._http.aclose()
