"""The outermost layer of our own: who asks, under which id, and what becomes of an error that nobody expected."""

import re
import secrets
import time
from contextlib import suppress

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auth import OPEN_PATHS, TENANT, Keys
from api.problems import of_status, path_of
from api.requests import Requests
from api.waiting import Drain

# What begins an answer; that of an upgrade has headers too.
STARTS = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")

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
        if tenant is None:
            detail = "give an API key: Authorization: Bearer tk_…"
            problem = of_status(401, detail, headers={"WWW-Authenticate": "Bearer"})
            await problem.response(scope)(scope, receive, send)
            return
        await self._serve(scope, receive, send, request_id)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: bytes | None) -> None:
        started, begun = False, time.perf_counter()

        async def tell(message: Message) -> None:
            nonlocal started
            if message["type"] in STARTS:
                started = True
                self._requests.answered(scope, message.get("status", 101), begun)
                more = [] if request_id is None else [(b"x-request-id", request_id)]
                if self._drain.announced and message["type"] == "http.response.start":
                    # An idle connection that we close may carry a request by then.
                    more.append((b"connection", b"close"))
                if more:
                    message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        try:
            await self._app(scope, receive, tell)
        except ClientDisconnect:
            return
        except Exception:
            trace = trace_id(scope, request_id)
            log.exception("request failed", trace_id=trace, method=scope.get("method", "WS"), path=path_of(scope))
            if started:
                if scope["type"] == "websocket":
                    with suppress(Exception):  # the client may have gone, or have been sent away
                        await send({"type": "websocket.close", "code": 1011})
                return  # the server closes the connection, so that the client sees a cut body and not a whole one
            problem = of_status(500, f"it is logged under the trace id {trace}", more={"trace_id": trace})
            await problem.response(scope)(scope, receive, tell)


def trace_id(scope: Scope, request_id: bytes | None) -> str:
    """What the client calls the request, else what its trace is called, else something new."""
    if request_id is not None:
        return request_id.decode("ascii")
    return next(
        (match[1] for name, value in scope["headers"] if name == b"traceparent" if (match := _trace(value))),
        secrets.token_hex(16),
    )


def _trace(value: bytes) -> re.Match[str] | None:
    return TRACEPARENT.fullmatch(value.decode("latin-1"))
