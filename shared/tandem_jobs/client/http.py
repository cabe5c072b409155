"""The two transports over httpx: one that blocks and one for asyncio."""

import asyncio
import ipaddress
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from tandem_jobs.client.transfers import Source
from tandem_jobs.client.transport import Lost, Request
from tandem_shared.errors import Malformed

T = TypeVar("T")


CONNECT, WRITE, POOL = 5.0, 30.0, 30.0  # seconds


CONNECTIONS = httpx2.Limits(max_connections=1000, max_keepalive_connections=20)


def _options(url: str) -> dict[str, Any]:
    host = urlsplit(url).hostname or ""
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    # No proxy of the environment is asked for this machine.
    return {"timeout": httpx2.Timeout(CONNECT), "limits": CONNECTIONS, "trust_env": not here}


def _request(
    client: httpx2.Client | httpx2.AsyncClient, base: str, key: str, request: Request
) -> httpx2.Request:
    below = request.path.startswith("/")
    # As it comes: nothing is unpacked twice, and a compressed stream would come late.
    headers = {"Accept-Encoding": "identity", "User-Agent": "tandem-client", **request.headers}
    if key and below:
        headers["Authorization"] = f"Bearer {key}"
    content: Any = request.body
    if isinstance(content, Source):
        content = (
            _pieces(content) if isinstance(client, httpx2.Client) else _suspended_pieces(content)
        )
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
            return _BlockingOpened(
                self._http.send(_request(self._http, self.url, self._key, request), stream=True)
            )
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
            answer = await self._http.send(
                _request(self._http, self.url, self._key, request), stream=True
            )
            return _SuspendingOpened(answer)
        except httpx2.TransportError as error:
            raise _fault(error) from None

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def call(self, function: Callable[[], T]) -> T:
        return await asyncio.to_thread(function)

    async def close(self) -> None:
        await self._http.aclose()
