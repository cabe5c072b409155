"""The ASGI application: authenticates and counts requests, and answers unexpected errors."""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress

from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem_api.auth import ApiKeys
from tandem_api.drain import Drain
from tandem_api.http.parameters import TRACEPARENT, read_headers
from tandem_api.http.problems import (
    RETRY_AFTER_SECONDS,
    STATUSES,
    Problem,
    path_of,
    status_problem,
    unexpected_problem,
)
from tandem_api.http.routing import PlainRoutes
from tandem_api.metrics import RequestMetrics
from tandem_api.origin import PagePolicy
from tandem_api.prefix import mount

# The messages that begin a response, and carry its headers.
STARTS = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Edge:
    """Passes each request to its plain route or, if it has none, to FastAPI.

    Edge reads the headers, refuses requests without a valid API key, of a web page that may not use
    the API, or without exactly one Host, counts the response, adds headers to it, and answers what
    the application could not.
    """

    def __init__(
        self,
        fastapi: FastAPI,
        keys: ApiKeys,
        metrics: RequestMetrics,
        drain: Drain,
        pages: PagePolicy | None,
        *,
        root_path: str = "",
    ) -> None:
        self.fastapi, self.drain = fastapi, drain
        self._keys, self._metrics, self._pages = keys, metrics, pages
        self._plain = PlainRoutes(fastapi.routes)
        self._root = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.fastapi(scope, receive, send)
        else:
            if self._root:
                send = mount(scope, send, self._root)
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = read_headers(scope["headers"])
        began, started = time.perf_counter(), False

        def respond(message: Message) -> Awaitable[None]:
            nonlocal started
            if message["type"] in STARTS:
                started = True
                self._metrics.answered(scope, message.get("status", 101), began)
                added = self._added(headers, message)
                if added:
                    message = {**message, "headers": [*message.get("headers", ()), *added]}
            return send(message)

        try:
            await self._app(scope, headers)(scope, receive, respond)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            if started or not self.drain.begun:
                raise
            await _unfinished().response(scope)(scope, receive, respond)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a response
            method, path = scope.get("method", "WS"), path_of(scope)
            problem = unexpected_problem(
                error, trace_id(headers), "request failed", method=method, path=path
            )
            if not started:
                await problem.response(scope)(scope, receive, respond)
            elif scope["type"] == "websocket":
                with suppress(Exception):  # the socket may be closed already
                    await send({"type": "websocket.close", "code": 1011})
            # The server closes a connection whose response has no end, so the client sees the cut.

    def _app(self, scope: Scope, headers: Mapping[str, str]) -> ASGIApp:
        """The application that answers the request: a refusal, a plain route, or FastAPI."""
        refusal = self._admit(scope, headers)
        if refusal is not None:
            return refusal.response(scope)
        route = self._plain.find(scope) if scope["type"] == "http" else None
        return self.fastapi if route is None else route.app

    def _admit(self, scope: Scope, headers: Mapping[str, str]) -> Problem | None:
        """Puts tenant and headers into the request's state, or returns why it is refused."""
        host = headers.get("host")
        if (host is None or "," in host) and scope["http_version"] == "1.1":
            # RFC 9112 (3.2): a proxy may have used the other one of two Host headers.
            detail = "an HTTP/1.1 request must have exactly one Host header"
            return status_problem(400, detail, headers={"Connection": "close"})
        refusal = None if self._pages is None else self._pages.refusal(scope, headers)
        if refusal is not None:
            return refusal
        authorization = headers.get("authorization")
        if authorization is not None and "," in authorization and _is_repeated(scope):
            # A proxy may have checked the other one.
            return status_problem(400, "Authorization: send it once")
        tenant = self._keys.tenant(scope["path"], authorization)
        if tenant is None:
            return _unauthenticated(authorization)
        scope["state"]["tenant"], scope["state"]["headers"] = tenant, headers
        return None

    def _added(self, headers: Mapping[str, str], start: Message) -> list[tuple[bytes, bytes]]:
        """The headers that every response gets."""
        added = []
        request_id = _request_id(headers)
        if request_id is not None:
            added.append((b"x-request-id", request_id.encode()))
        if self.drain.announced and start["type"] == "http.response.start":
            # Idle connections are about to close, and a request sent on one would be lost.
            added.append((b"connection", b"close"))
        return added


def _is_repeated(scope: Scope) -> bool:
    return [name for name, _ in scope["headers"]].count(b"authorization") > 1


def _unauthenticated(given: str | None) -> Problem:
    """The answer to a request without a key, or with one that is not valid (RFC 6750, 3.1)."""
    scheme, _, key = (given or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        detail = "send an API key: Authorization: Bearer tk_…"
        return status_problem(401, detail, headers={"WWW-Authenticate": "Bearer"})
    return Problem(
        status=401,
        type=STATUSES[401][0],
        title="The API key is not valid",
        detail="the key in Authorization is none of this service's",
        headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
    )


def _request_id(headers: Mapping[str, str]) -> str | None:
    request_id = headers.get("x-request-id")
    return request_id if request_id is not None and REQUEST_ID.fullmatch(request_id) else None


def _unfinished() -> Problem:
    """The answer to a request that is still waiting, mostly for Redis, when the drain ends."""
    detail = "the process is shutting down and had no answer in time: repeat the request"
    return status_problem(503, detail, headers={"Retry-After": RETRY_AFTER_SECONDS})


def trace_id(headers: Mapping[str, str]) -> str:
    """The client's request id, or the id of its trace, or a new one."""
    match = TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return _request_id(headers) or (match[1] if match else secrets.token_hex(16))
