"""HTTP for tasks: one pooled session, and a check of each address at the moment of connecting.

The check sees the address that is about to be dialled, so it covers literals, redirects, and names
that resolve to something else the second time. Failures are TaskErrors:

    address_refused    the host has no address that tasks may call (TANDEM_HTTP_ALLOW adds some)
    connection_failed  no connection, or one that broke; retryable unless a repeat could do
                       something twice
    tls_failed         the certificate is not valid
    redirect_refused   a redirect to an invalid URL, out of HTTP, or in circles
    bad_response       the response is not HTTP, or its body not encoded as it declares
    too_large          the headers of the response pass a bound of protocol.py, or its body `limit`
    invalid_url        a URL that cannot be called
    circuit_open       the host kept failing and gets no calls for a while (breaker.py); retryable
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver
from aiohttp.connector import AddrInfoType
from multidict import CIMultiDict
from yarl import URL

from tandem_shared.settings import Settings
from tandem_shared.version import tandem_version
from tandem_worker.connectors.http import guard
from tandem_worker.connectors.http.breaker import Breaker
from tandem_worker.connectors.http.cookies import ChainCookies
from tandem_worker.connectors.http.decoding import WrongCoding
from tandem_worker.connectors.http.protocol import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    HeadersTooLarge,
    ResponseProtocol,
)
from tandem_worker.connectors.http.urls import QueryParams, join_url, parse_url
from tandem_worker.errors import Permanent, TaskError

MAX_CONNECTIONS = 1000
MAX_CONNECTIONS_PER_HOST = 100  # and port
CONNECT_TIMEOUT_SECONDS = 10.0  # for each address, including TLS
# Below the 5 s of many servers, so that they rarely close a connection that is being reused.
KEEP_ALIVE_SECONDS = 4.0
DNS_CACHE_SECONDS = 10
MAX_REDIRECTS = 10
DEFAULT_TIMEOUT_SECONDS = 300.0  # for a whole call
DEFAULT_MAX_BYTES = 1 << 20  # of a response that is read into memory

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  # RFC 9110, 9.2.1
# What still goes to another origin after a redirect: any other header may be a credential.
_SAFE_HEADERS = frozenset(
    "accept accept-charset accept-encoding accept-language cache-control content-encoding"
    " content-language content-type date expect if-modified-since if-none-match pragma range"
    " traceparent tracestate user-agent".split()
)
_BODY_HEADERS = (
    "Content-Type",
    "Content-Encoding",
    "Content-Language",
    "Content-Location",
    "Content-Length",
    "Digest",
)

# `HttpClient.request` bounds the whole call, with its redirects and the reading of the response.
_CONNECT_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_SECONDS)

# Bytes, or a function that opens a stream of them: a redirect may need the body again.
Body = bytes | Callable[[], AsyncIterator[bytes]]


@dataclass
class _Dial:
    """The addresses of one host, counted while one hop connects."""

    host: str
    refused: int = 0
    dialled: int = 0


# Set for each hop, and inherited by the tasks in which aiohttp tries several addresses. Without it
# no host name would be allowed.
_dial: ContextVar[_Dial | None] = ContextVar("dial", default=None)


@dataclass(frozen=True)
class _Hop:
    """One request of a call; each redirect makes another."""

    url: URL
    method: str
    headers: CIMultiDict[str]
    body: Body | None


class HttpClient:
    """HTTP calls for tasks, `job.http`. Opened and closed by `open_http`."""

    def __init__(self, session: aiohttp.ClientSession, breaker: Breaker) -> None:
        self._session = session
        self._breaker = breaker

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str | URL,
        *,
        headers: Mapping[str, str] | None = None,
        params: QueryParams | None = None,
        json: Any = None,
        body: Body | None = None,
        follow_redirects: bool = True,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        retry_unsafe: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One call with its redirects, as `async with`; the block reads the response of any status.

        `timeout` is in seconds, from the first byte to the last. Credentials in `headers` are sent
        to the first origin only. Raises TaskError (see above); a broken connection is retryable if
        `method` is safe, `headers` has an `Idempotency-Key`, or `retry_unsafe` is set.
        """
        sent: CIMultiDict[str] = CIMultiDict(headers or {})
        if json is not None:
            body = msgspec.json.encode(json)
            sent.setdefault("Content-Type", "application/json")
        first = _Hop(_target(url, params), method, sent, body)
        repeatable = method in SAFE_METHODS or retry_unsafe or "Idempotency-Key" in sent
        redirects = MAX_REDIRECTS if follow_redirects else 0
        total = asyncio.timeout(timeout)
        try:
            async with total:
                response = await self._follow(first, redirects, repeatable)
                try:
                    yield response
                except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                    raise call_failed(error, response.url, None, repeatable) from error
                finally:
                    # Closes the connection unless the whole response was read.
                    response.release()
        except TimeoutError as error:
            if not total.expired():
                raise
            message = f"{display(first.url)} took longer than {timeout:g} s"
            raise TaskError("timeout", message, repeatable) from error

    async def read(
        self,
        response: aiohttp.ClientResponse,
        limit: int = DEFAULT_MAX_BYTES,
        on_bytes: Callable[[int], None] | None = None,
    ) -> bytes:
        """The body, decompressed; `on_bytes` receives the size of each piece.

        Raises Permanent `too_large` as soon as there are more than `limit` bytes.
        """
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            if on_bytes is not None:
                on_bytes(len(chunk))
            if len(data) > limit:
                message = f"the response of {display(response.url)} has more than {limit} bytes"
                raise Permanent("too_large", message)
        return bytes(data)

    async def _follow(self, hop: _Hop, redirects: int, repeatable: bool) -> aiohttp.ClientResponse:
        first, cookies = hop, ChainCookies()
        for _ in range(redirects + 1):
            response = await self._send(hop, repeatable, cookies)
            following = _redirect(hop, response) if redirects else None
            if following is None:
                return response
            cookies.store(response)
            response.release()
            hop = following
        message = f"{display(first.url)} redirects more than {redirects} times"
        raise Permanent("redirect_refused", message)

    async def _send(
        self, hop: _Hop, repeatable: bool, cookies: ChainCookies
    ) -> aiohttp.ClientResponse:
        data = hop.body() if callable(hop.body) else hop.body
        permit = self._breaker.enter(f"{_host(hop.url)}:{hop.url.port}")
        dial = _Dial(_host(hop.url))
        token = _dial.set(dial)
        try:
            response = await self._session.request(
                hop.method,
                hop.url,
                headers=cookies.add_to(hop.headers, hop.url),
                data=data,
                allow_redirects=False,
                timeout=_CONNECT_TIMEOUT,
            )
            if response.status >= 500:
                permit.failed()
            else:
                permit.answered()
            return response
        except (aiohttp.ClientError, OSError) as error:
            failure = call_failed(error, hop.url, dial, repeatable)
            if failure.type in ("connection_failed", "bad_response"):
                permit.failed()
            raise failure from error
        except UnicodeError as error:  # the host is not valid in IDNA: an empty or too long label
            message = f"the host name of {display(hop.url)} is not valid"
            raise Permanent("invalid_url", message) from error
        finally:
            _dial.reset(token)
            permit.over()


@asynccontextmanager
async def open_http(
    settings: Settings, *, resolver: AbstractResolver | None = None, breaker: Breaker | None = None
) -> AsyncIterator[HttpClient]:
    """The client for one worker, closed at the end. Tests pass a `resolver` in place of DNS."""
    allow = guard.parse(settings.http_allow)

    def guarded_socket(address: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, sockaddr = address
        dial = _dial.get()
        named = dial is not None and dial.host in allow.names
        if not named and not guard.allowed(str(sockaddr[0]), allow.networks):
            if dial is not None:
                dial.refused += 1
            raise PermissionError("tasks may not call this address")
        if dial is not None:
            dial.dialled += 1
        return socket.socket(family=family, type=kind, proto=protocol)

    connector = aiohttp.TCPConnector(
        limit=MAX_CONNECTIONS,
        limit_per_host=MAX_CONNECTIONS_PER_HOST,
        keepalive_timeout=KEEP_ALIVE_SECONDS,
        ttl_dns_cache=DNS_CACHE_SECONDS,
        resolver=resolver,
        socket_factory=guarded_socket,
    )
    # aiohttp has no option for the class of its connections.
    factory: Any = partial(ResponseProtocol, loop=asyncio.get_running_loop())
    connector._factory = factory  # noqa: SLF001 - see above
    session = aiohttp.ClientSession(
        connector=connector,
        # Jobs share the session, but not their cookies.
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"tandem-jobs/{tandem_version()}"},
        trust_env=False,
        auto_decompress=False,  # ResponseProtocol decodes
        # ResponseProtocol checks these bounds first, and names them.
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        max_headers=MAX_HEADERS,
    )
    async with session:
        yield HttpClient(session, breaker or Breaker())


def display(url: URL) -> str:
    """The URL for messages: without query, fragment and user, which may hold secrets."""
    try:
        return str(url.with_user(None).with_query(None).with_fragment(None))
    except ValueError:
        return "the URL"


def _target(url: str | URL, params: QueryParams | None) -> URL:
    try:
        target = parse_url(str(url), params)
        problem = url_problem(target)
    except (ValueError, TypeError):
        target, problem = URL(), "this is not a valid URL"
    if problem is not None:
        raise Permanent("invalid_url", problem)
    return target


def url_problem(url: URL) -> str | None:
    """Why the URL cannot be called, or None."""
    if url.scheme not in ("http", "https"):
        return "the URL is not http or https"
    if not url.raw_host:
        return "the URL has no host"
    if url.raw_user is not None or url.raw_password is not None:
        return "the URL has a user or a password: send an Authorization header instead"
    return None


def _host(url: URL) -> str:
    return (url.raw_host or "").rstrip(".").lower()


def _redirect(hop: _Hop, response: aiohttp.ClientResponse) -> _Hop | None:
    """The next hop if the response redirects (RFC 9110, 15.4)."""
    location = response.headers.get("Location")
    if response.status not in (301, 302, 303, 307, 308) or not location:
        return None
    try:
        url = join_url(hop.url, location)
        problem = url_problem(url)
    except ValueError:
        problem = "its Location is not a valid URL"
    if problem is not None:
        raise Permanent("redirect_refused", f"{display(hop.url)} redirects, but {problem}")
    method, headers, body = hop.method, CIMultiDict(hop.headers), hop.body
    to_get = (response.status == 303 and method != "HEAD") or (
        response.status in (301, 302) and method == "POST"
    )
    if to_get and method != "GET":
        method, body = "GET", None
        for name in _BODY_HEADERS:
            headers.popall(name, None)
    if url.origin() != hop.url.origin():
        headers = CIMultiDict(
            (name, value) for name, value in headers.items() if name.lower() in _SAFE_HEADERS
        )
    return _Hop(url, method, headers, body)


def call_failed(error: Exception, url: URL, dial: _Dial | None, repeatable: bool) -> TaskError:
    """The error for clients, without addresses and the query."""
    where = display(url)
    if dial is not None and dial.refused and not dial.dialled:
        return _refused(url)
    if isinstance(error, aiohttp.InvalidURL):
        # Digits and dots that are not an IPv4 address, such as 127.1 or 2130706433: libc would
        # accept them as one.
        if _host(url).replace(".", "").isdigit():
            return _refused(url)
        return Permanent("invalid_url", f"{where} cannot be called")
    # RFC 6761, 6.3: localhost is this machine, whether or not DNS knows it.
    local = f".{_host(url)}".endswith(".localhost")
    if local and isinstance(error, aiohttp.ClientConnectorDNSError):
        return _refused(url)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Permanent("tls_failed", f"the certificate of {where} is not valid")
    if isinstance(error.__cause__, HeadersTooLarge):
        return Permanent("too_large", f"the response of {where}: {error.__cause__.message}")
    if isinstance(error, WrongCoding):
        return Permanent("bad_response", f"the response of {where}: {error}")
    if isinstance(error, aiohttp.ClientResponseError):
        return TaskError("bad_response", f"the response of {where} is not HTTP", repeatable)
    return TaskError("connection_failed", f"no response from {where}: {_reason(error)}", repeatable)


_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ClientConnectorDNSError, "the host name is not known"),
    (aiohttp.ClientConnectorSSLError, "TLS failed"),
    (aiohttp.ServerTimeoutError, "connecting took too long"),
    (aiohttp.ServerDisconnectedError, "the server closed the connection"),
    (aiohttp.ClientPayloadError, "the body broke off"),
)


def _reason(error: Exception) -> str:
    known = next((reason for kind, reason in _REASONS if isinstance(error, kind)), None)
    if known is None and isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return known or "the connection broke"


def _refused(url: URL) -> Permanent:
    message = (
        f"this worker may not call {url.host} (not a public address);"
        " allow it with TANDEM_HTTP_ALLOW"
    )
    return Permanent("address_refused", message)
