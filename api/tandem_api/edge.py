"""The outermost layer of our own: who asks, under which id, and what becomes of an error that nobody expected."""

import asyncio
import re
import secrets
import time
from contextlib import suppress

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tandem_api.auth import OPEN_PATHS, TENANT, Keys
from tandem_api.drain import Drain
from tandem_api.http.extensions import ANSWER
from tandem_api.http.headers import TRACEPARENT
from tandem_api.http.problems import RETRY_AFTER, of_status, path_of
from tandem_api.http.routing import Plain
from tandem_api.metrics import Requests

# What begins an answer; that of an upgrade has headers too.
STARTS = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

log = structlog.get_logger()


class Edge:
    """An ASGI layer that needs no task and no copy of the body; `scope["state"]["tenant"]` is its finding."""

    def __init__(self, app: ASGIApp, keys: Keys, requests: Requests, drain: Drain) -> None:
        self._app, self._keys, self._requests, self._drain = app, keys, requests, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] not in ("http", "websocket"):
            return  # there are no others, and none is let in unasked
        known, request_id = self._enter(scope)
        if known:
            await self._serve(scope, receive, send, request_id)
        else:
            await _unknown(scope)(scope, receive, send)

    def _enter(self, scope: Scope) -> tuple[bool, bytes | None]:
        """Whether we know who asks, the tenant being in the scope then; and what the client calls the request."""
        authorization = request_id = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = value
            elif name == b"x-request-id" and REQUEST_ID.fullmatch(value):
                request_id = value
        tenant: str | None = TENANT
        if not self._keys.open and scope["path"] not in OPEN_PATHS:
            tenant = self._keys.tenant(authorization.decode("latin-1")) if authorization else None
        scope["state"]["tenant"] = tenant
        return tenant is not None, request_id

    async def answer(self, plain: Plain, scope: Scope, receive: Receive, send: Send) -> None:
        """The same for a plain endpoint that a shortcut leads to: nothing is between it and this layer."""
        known, request_id = self._enter(scope)
        if not known:
            await _unknown(scope)(scope, receive, send)
            return
        begun = time.perf_counter()
        try:
            response = await plain.respond(scope, receive, send)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            if not self._drain.begun:
                raise
            response = _unfinished(scope)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            response = _unexpected(scope, request_id, error)
        self._requests.answered(scope, response.status_code, begun)
        response.raw_headers += self._added(request_id)
        if type(response) is Response and ANSWER in scope.get("extensions", ()):
            whole = {
                "status": response.status_code,
                "headers": response.raw_headers,
                "body": response.body,
            }
            await send({"type": ANSWER, **whole})
        else:
            await response(scope, receive, send)

    def _added(self, request_id: bytes | None, *, http: bool = True) -> list[tuple[bytes, bytes]]:
        """The headers that every answer gets here."""
        more = [] if request_id is None else [(b"x-request-id", request_id)]
        if http and self._drain.announced:
            # An idle connection that we close may carry a request by then.
            more.append((b"connection", b"close"))
        return more

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, request_id: bytes | None
    ) -> None:
        started, begun = False, time.perf_counter()

        async def tell(message: Message) -> None:
            nonlocal started
            if message["type"] in STARTS:
                started = True
                self._requests.answered(scope, message.get("status", 101), begun)
                more = self._added(request_id, http=message["type"] == "http.response.start")
                if more:
                    message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        try:
            await self._app(scope, receive, tell)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            if started or not self._drain.begun:
                raise
            await _unfinished(scope)(scope, receive, tell)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            problem = _unexpected(scope, request_id, error)
            if started:
                if scope["type"] == "websocket":
                    with suppress(Exception):  # the client may have gone, or have been sent away
                        await send({"type": "websocket.close", "code": 1011})
                # the server closes the connection, so that the client sees a cut body and not a
                # whole one
                return
            await problem(scope, receive, tell)


def _unknown(scope: Scope) -> Response:
    detail = "give an API key: Authorization: Bearer tk_…"
    return of_status(401, detail, headers={"WWW-Authenticate": "Bearer"}).response(scope)


def _unfinished(scope: Scope) -> Response:
    """For a request that the server cancels: its end has waited long enough, for Redis mostly."""
    detail = "the process ends and had no answer in time: ask again, and another one answers"
    return of_status(503, detail, headers={"Retry-After": RETRY_AFTER}).response(scope)


def _unexpected(scope: Scope, request_id: bytes | None, error: Exception) -> Response:
    """Logs the error; the answer that says no more of it than where to look."""
    trace = trace_id(scope, request_id)
    log.error(
        "request failed",
        trace_id=trace,
        method=scope.get("method", "WS"),
        path=path_of(scope),
        exc_info=error,
    )
    detail = f"it is logged under the trace id {trace}"
    return of_status(500, detail, more={"trace_id": trace}).response(scope)


def trace_id(scope: Scope, request_id: bytes | None) -> str:
    """What the client calls the request, else what its trace is called, else something new."""
    if request_id is not None:
        return request_id.decode("ascii")
    return next(
        (
            match[1]
            for name, value in scope["headers"]
            if name == b"traceparent"
            if (match := _trace(value))
        ),
        secrets.token_hex(16),
    )


def _trace(value: bytes) -> re.Match[str] | None:
    return TRACEPARENT.fullmatch(value.decode("latin-1"))
