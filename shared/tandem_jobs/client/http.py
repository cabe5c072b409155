"""The two transports over httpx: one that blocks and one for asyncio."""

import asyncio
import ipaddress
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from tandem_jobs.client.transfers import UploadSource
from tandem_jobs.client.transport import ConnectionLost, Request
from tandem_shared.errors import Malformed

T = TypeVar("T")

CONNECT_TIMEOUT_SECONDS = 5.0
WRITE_TIMEOUT_SECONDS = 30.0
POOL_TIMEOUT_SECONDS = 30.0
CONNECTIONS = httpx2.Limits(max_connections=1000, max_keepalive_connections=20)
TIMEOUTS: dict[type[Exception], str] = {
    httpx2.ConnectTimeout: f"no connection within {CONNECT_TIMEOUT_SECONDS:g} s",
    httpx2.ReadTimeout: "the response stalled",
    httpx2.WriteTimeout: "the request stalled",
}


class _BlockingResponse:
    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._body = response.iter_raw()
        self.status, self.headers = response.status_code, response.headers

    async def read(self) -> bytes:
        with _translated_errors():
            return next(self._body, b"")

    async def aclose(self) -> None:
        self._response.close()


class BlockingTransport:
    """Blocks in every call, so that its coroutines never suspend."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self._key = url, key
        self._http = httpx2.Client(limits=CONNECTIONS, trust_env=not _is_local(url))

    async def send(self, request: Request) -> _BlockingResponse:
        upload = request.body
        body = iter(upload.read, b"") if isinstance(upload, UploadSource) else upload
        with _translated_errors():
            message = build_request(self._http, self.url, self._key, request, body)
            return _BlockingResponse(self._http.send(message, stream=True))

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - blocking is what this transport is for

    async def run(self, function: Callable[[], T]) -> T:
        return function()

    async def aclose(self) -> None:
        self._http.close()


class _AsyncResponse:
    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self._body = response.aiter_raw()
        self.status, self.headers = response.status_code, response.headers

    async def read(self) -> bytes:
        with _translated_errors():
            return await anext(self._body, b"")

    async def aclose(self) -> None:
        await self._response.aclose()


class AsyncTransport:
    """Suspends in the running event loop; files are read and written in threads."""

    def __init__(self, url: str, key: str) -> None:
        self.url, self._key = url, key
        self._http = httpx2.AsyncClient(limits=CONNECTIONS, trust_env=not _is_local(url))

    async def send(self, request: Request) -> _AsyncResponse:
        upload = request.body
        body = _chunks(upload) if isinstance(upload, UploadSource) else upload
        with _translated_errors():
            message = build_request(self._http, self.url, self._key, request, body)
            return _AsyncResponse(await self._http.send(message, stream=True))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def run(self, function: Callable[[], T]) -> T:
        return await asyncio.to_thread(function)

    async def aclose(self) -> None:
        await self._http.aclose()


async def _chunks(upload: UploadSource) -> AsyncIterator[bytes]:
    while data := await asyncio.to_thread(upload.read):
        yield data


def _is_local(url: str) -> bool:
    """Whether the server runs on this machine: the environment's proxies are not for it."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def build_request(
    client: httpx2.Client | httpx2.AsyncClient, base: str, key: str, request: Request, body: Any
) -> httpx2.Request:
    """The request as httpx sends it. Raises Malformed for a URL that is not valid."""
    url = request.path
    # Identity: the client resumes at byte offsets of the body, and a compressed stream comes late.
    headers = {"Accept-Encoding": "identity", "User-Agent": "tandem-client", **request.headers}
    if url.startswith("/"):
        url = base + url
        if key:
            headers["Authorization"] = f"Bearer {key}"
    try:
        return client.build_request(
            request.method,
            url,
            params=dict(request.query) or None,
            headers=[(name.encode(), value.encode()) for name, value in headers.items()],
            content=body or None,
            timeout=httpx2.Timeout(
                connect=CONNECT_TIMEOUT_SECONDS,
                read=request.timeout,
                write=WRITE_TIMEOUT_SECONDS,
                pool=POOL_TIMEOUT_SECONDS,
            ),
        )
    except httpx2.InvalidURL as error:
        raise Malformed(f"{request.path[:200]}: {error}") from None


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Raises ConnectionLost, or Malformed for what httpx refuses to send."""
    try:
        yield
    except (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol) as error:
        raise Malformed(str(error)) from None
    except httpx2.TransportError as error:
        reason = TIMEOUTS.get(type(error)) or _system_error(error) or str(error)
        raise ConnectionLost(reason or type(error).__name__) from None


def _system_error(error: BaseException | None) -> str:
    """The text of the operating system's error behind an exception, or an empty string."""
    while error is not None:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, OSError) and error.errno:
            return os.strerror(error.errno) if error.errno > 0 else error.strerror or ""
        error = error.__cause__ or error.__context__
    return ""
