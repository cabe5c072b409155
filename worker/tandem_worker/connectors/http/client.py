"""The worker's way out over HTTP: one pooled session, and a guard at the moment of connecting.

The guard judges the very address that is about to be dialled, so literals, redirects and names that
resolve to something else the second time are all the same to it. Failures are TaskErrors:

    address_refused    the host is at no address that may be called (TANDEM_HTTP_ALLOW adds to the
                       public internet)
    connection_failed  no connection, or one that broke; retryable unless a repeat could do
                       something twice
    tls_failed         the certificate does not hold
    redirect_refused   a redirect that leads nowhere, out of HTTP, or in circles
    bad_response       what came back is no HTTP
    invalid_url        a URL that only showed itself to be none when it was used
    circuit_open       the host kept failing and is left alone for a while
                       (worker/tandem_worker/connectors/http/breaker.py); retryable
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
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
from tandem_worker.errors import Permanent, TaskError

PER_HOST = 100  # connections to one host and port
CONNECTIONS = 1000  # in all
CONNECT = 10.0  # seconds for each try at one address, TLS included
# seconds; below the 5 of many servers, so that they rarely close a connection as it is used again
KEEP_IDLE = 4.0
RESOLVED = 10  # seconds a name's addresses are kept
REDIRECTS = 10
TIMEOUT = 300.0  # seconds for a whole call where the caller names no time
MAX_BYTES = 1 << 20  # of a response that is read whole, where the caller does not say

SAFE = frozenset(
    {"GET", "HEAD", "OPTIONS", "TRACE"}
)  # RFC 9110, 9.2.1: a repeat does nothing twice
_SECRET = ("Authorization", "Cookie", "Proxy-Authorization")
_OF_THE_BODY = (
    "Content-Type",
    "Content-Encoding",
    "Content-Language",
    "Content-Location",
    "Content-Length",
    "Digest",
)

# The time for the whole call is kept around the redirects and the reading, here only that for
# connecting.
_LIMITS = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT)

Params = Mapping[str, Any] | Sequence[tuple[str, str]]
# Bytes, or what opens a stream of them: called anew for each redirect that asks for the body again.
Body = bytes | Callable[[], AsyncIterator[bytes]]


@dataclass
class _Dial:
    """What the guard knows and finds while one hop is connected."""

    host: str
    refused: int = 0
    dialled: int = 0


# Set for each hop. Tasks that aiohttp starts to try several addresses inherit it; where it were
# missing, no name would be allowed.
_dial: ContextVar[_Dial | None] = ContextVar("dial", default=None)


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
        params: Params | None = None,
        json: Any = None,
        body: Body | None = None,
        follow_redirects: bool = True,
        timeout: float = TIMEOUT,
        retry_unsafe: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One call, redirects included, as `async with`; the block reads the response, whatever its status.

        `timeout` is in seconds, for all from the first byte to the last. Credentials in `headers`
        go to the first origin only. Raises TaskError (see above); a broken connection is retryable
        if `method` is safe, `headers` have an `Idempotency-Key`, or `retry_unsafe` is set.
        """
        sent: CIMultiDict[str] = CIMultiDict(headers or {})
        if json is not None:
            body = msgspec.json.encode(json)
            sent.setdefault("Content-Type", "application/json")
        first = _Hop(_target(url, params), method, sent, body)
        repeatable = method in SAFE or retry_unsafe or "Idempotency-Key" in sent
        total = asyncio.timeout(timeout)
        try:
            async with total:
                response = await self._follow(
                    first, REDIRECTS if follow_redirects else 0, repeatable
                )
                try:
                    yield response
                except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                    raise failure(error, response.url, None, repeatable) from error
                finally:
                    # Closes the connection unless all of the response was read.
                    response.release()
        except TimeoutError as error:
            if not total.expired():
                raise
            raise TaskError(
                "timeout", f"{shown(first.url)} took longer than it may", repeatable
            ) from error

    async def read(
        self,
        response: aiohttp.ClientResponse,
        limit: int = MAX_BYTES,
        taken: Callable[[int], None] | None = None,
    ) -> bytes:
        """The body, decompressed piece by piece; `taken` is told the size of each.

        Raises TaskError `too_large` as soon as it has more than `limit` bytes.
        """
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            if taken is not None:
                taken(len(chunk))
            if len(data) > limit:
                message = f"the response of {shown(response.url)} has more than {limit} bytes"
                raise Permanent("too_large", message)
        return bytes(data)

    async def _follow(
        self, hop: "_Hop", redirects: int, repeatable: bool
    ) -> aiohttp.ClientResponse:
        first = hop
        for _ in range(redirects + 1):
            response = await self._send(hop, repeatable)
            following = _redirect(hop, response) if redirects else None
            if following is None:
                return response
            response.release()
            hop = following
        raise Permanent(
            "redirect_refused", f"{shown(first.url)} redirects more than {redirects} times"
        )

    async def _send(self, hop: "_Hop", repeatable: bool) -> aiohttp.ClientResponse:
        data = hop.body() if callable(hop.body) else hop.body
        passed = self._breaker.enter(f"{_name(hop.url)}:{hop.url.port}")
        dial = _Dial(_name(hop.url))
        token = _dial.set(dial)
        try:
            response = await self._session.request(
                hop.method,
                hop.url,
                headers=hop.headers,
                data=data,
                allow_redirects=False,
                timeout=_LIMITS,
            )
            if response.status >= 500:
                passed.failed()
            else:
                passed.answered()
            return response
        except (aiohttp.ClientError, OSError) as error:
            fault = failure(error, hop.url, dial, repeatable)
            if fault.type in ("connection_failed", "bad_response"):
                passed.failed()
            raise fault from error
        except UnicodeError as error:  # of a host that IDNA refuses: empty or over-long labels
            raise Permanent(
                "invalid_url", f"{shown(hop.url)} has no host name that can be"
            ) from error
        finally:
            _dial.reset(token)
            passed.over()


@asynccontextmanager
async def open_http(
    settings: Settings, *, resolver: AbstractResolver | None = None, breaker: Breaker | None = None
) -> AsyncIterator[HttpClient]:
    """The client for one worker, closed at the end. `resolver` answers for DNS, for tests of names."""
    allow = guard.parse(settings.http_allow)

    def guarded(address: AddrInfoType) -> socket.socket:
        family, kind, protocol, _, sockaddr = address
        dial = _dial.get()
        named = dial is not None and dial.host in allow.names
        if not named and not guard.allowed(str(sockaddr[0]), allow.networks):
            if dial is not None:
                dial.refused += 1
            raise PermissionError("this address may not be called")
        if dial is not None:
            dial.dialled += 1
        return socket.socket(family=family, type=kind, proto=protocol)

    connector = aiohttp.TCPConnector(
        limit=CONNECTIONS,
        limit_per_host=PER_HOST,
        keepalive_timeout=KEEP_IDLE,
        ttl_dns_cache=RESOLVED,
        resolver=resolver,
        socket_factory=guarded,
    )
    session = aiohttp.ClientSession(
        connector=connector,
        # One job's cookies are none of the next one's business.
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"tandem-jobs/{tandem_version()}"},
        trust_env=False,
    )
    async with session:
        yield HttpClient(session, breaker or Breaker())


def shown(url: URL) -> str:
    """The URL for messages: without query, fragment and user, which may hold secrets."""
    try:
        return str(url.with_user(None).with_query(None).with_fragment(None))
    except ValueError:
        return "the URL"


@dataclass(frozen=True)
class _Hop:
    """One request on the way through the redirects."""

    url: URL
    method: str
    headers: CIMultiDict[str]
    body: Body | None


def _target(url: str | URL, params: Params | None) -> URL:
    try:
        target = URL(url)
        if params:
            target = target.extend_query(_pairs(params))
        problem = unusable(target)
    except (ValueError, TypeError):
        target, problem = URL(), "this is no URL"
    if problem is not None:
        raise Permanent("invalid_url", problem)
    return target.with_fragment(None)


def _pairs(params: Params) -> list[tuple[str, str]]:
    """Query parameters as pairs: lists repeat the name, null is left out, booleans are `true` and `false`."""
    items = params.items() if isinstance(params, Mapping) else params
    each = (
        (name, one)
        for name, value in items
        for one in (value if isinstance(value, list | tuple) else [value])
    )
    return [
        (name, str(one).lower() if isinstance(one, bool) else str(one))
        for name, one in each
        if one is not None
    ]


def unusable(url: URL) -> str | None:
    if url.scheme not in ("http", "https"):
        return "only http and https can be called"
    if not url.raw_host:
        return "the URL names no host"
    if url.raw_user is not None or url.raw_password is not None:
        return "a URL with a user or a password in it is not called: send an Authorization header"
    return None


def _name(url: URL) -> str:
    return (url.raw_host or "").rstrip(".").lower()


def _redirect(hop: _Hop, response: aiohttp.ClientResponse) -> _Hop | None:
    """The next hop if the response asks for one (RFC 9110, 15.4)."""
    location = response.headers.get("Location")
    if response.status not in (301, 302, 303, 307, 308) or location is None:
        return None
    try:
        url = hop.url.join(URL(location)).with_fragment(None)
        problem = unusable(url)
    except ValueError:
        problem = "it leads to no URL"
    if problem is not None:
        raise Permanent("redirect_refused", f"{shown(hop.url)} redirects, but {problem}")
    method, headers, body = hop.method, CIMultiDict(hop.headers), hop.body
    to_get = (response.status == 303 and method != "HEAD") or (
        response.status in (301, 302) and method == "POST"
    )
    if to_get and method != "GET":
        method, body = "GET", None
        for name in _OF_THE_BODY:
            headers.popall(name, None)
    if url.origin() != hop.url.origin():
        for name in _SECRET:
            headers.popall(name, None)
    return _Hop(url, method, headers, body)


def failure(error: Exception, url: URL, dial: _Dial | None, repeatable: bool) -> TaskError:
    """The error in words for the client: no address, no query."""
    where = shown(url)
    if dial is not None and dial.refused and not dial.dialled:
        return refused(url)
    if isinstance(error, aiohttp.InvalidURL):
        # A host of digits and dots that is no IPv4 address, as 127.1 or 2130706433: libc would make
        # one of it.
        if _name(url).replace(".", "").isdigit():
            return refused(url)
        return Permanent("invalid_url", f"{where} cannot be called")
    if isinstance(error, aiohttp.ClientConnectorDNSError) and f".{_name(url)}".endswith(
        ".localhost"
    ):
        return refused(
            url
        )  # RFC 6761, 6.3: it is this machine, whether or not the name servers know it
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Permanent("tls_failed", f"the certificate of {where} does not hold")
    if isinstance(error, aiohttp.ClientResponseError):
        return TaskError("bad_response", f"{where} did not answer in HTTP", repeatable)
    return TaskError("connection_failed", f"no response from {where}: {_reason(error)}", repeatable)


_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ClientConnectorDNSError, "the name is not known"),
    (aiohttp.ClientConnectorSSLError, "TLS failed"),
    (aiohttp.ServerTimeoutError, "no connection in time"),
    (aiohttp.ServerDisconnectedError, "the server hung up"),
    (aiohttp.ClientPayloadError, "it broke off or is badly encoded"),
)


def _reason(error: Exception) -> str:
    known = next((reason for kind, reason in _REASONS if isinstance(error, kind)), None)
    if known is None and isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return known or "the connection broke"


def refused(url: URL) -> TaskError:
    return Permanent(
        "address_refused",
        f"{url.host} is at no address that this worker may call; its operator can allow one (TANDEM_HTTP_ALLOW)",
    )
