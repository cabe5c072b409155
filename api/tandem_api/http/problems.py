"""What an error is called over HTTP: RFC 9457, `application/problem+json`, for every error there is.

`shared` says what happened, this table says what that means here. An error of the service itself is
a 500 that shows a trace id and nothing else, see `edge.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from tandem_shared.errors import (
    BadCursor,
    Conflict,
    Full,
    Invalid,
    KeyReused,
    Malformed,
    NotFound,
    OffsetMismatch,
    TandemError,
    TooLarge,
    Unavailable,
    UnknownTask,
)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = "1"  # seconds, what a client waits before it asks again
FULL_RETRY_AFTER = "5"  # the same while the backlog is full
SHOWN_ERRORS = 20  # of one problem

# What it means here: status, the last part of `type`, `title`.
KNOWN: dict[type[TandemError], tuple[int, str, str]] = {
    Malformed: (400, "malformed", "The request is malformed"),
    Invalid: (422, "validation", "The request is not valid"),
    UnknownTask: (422, "unknown-task", "The task is not known"),
    KeyReused: (422, "idempotency-key-reused", "The idempotency key was used for something else"),
    TooLarge: (413, "too-large", "The request is too large"),
    NotFound: (404, "not-found", "There is no such thing"),
    BadCursor: (400, "unknown-position", "The position is not known"),
    Conflict: (409, "conflict", "The request does not fit the state"),
    OffsetMismatch: (409, "upload-offset", "The upload goes on elsewhere"),
    Full: (503, "backlog-full", "The backlog is full"),
    Unavailable: (503, "unavailable", "The service cannot serve this now"),
}
# The same for what HTTP itself has a status for.
STATUSES: dict[int, tuple[str, str]] = {
    400: ("malformed", "The request is malformed"),
    401: ("unauthenticated", "An API key is needed"),
    403: ("forbidden", "This is not allowed"),
    404: ("not-found", "There is no such thing"),
    405: ("method-not-allowed", "The method is not allowed here"),
    406: ("not-acceptable", "None of the accepted formats is available"),
    408: ("timeout", "The request took too long"),
    409: ("conflict", "The request does not fit the state"),
    411: ("length-required", "The length of the body is needed"),
    412: ("precondition-failed", "A precondition failed"),
    413: ("too-large", "The request is too large"),
    415: ("unsupported-media-type", "The content type is not supported"),
    416: ("range-not-satisfiable", "The range is not satisfiable"),
    422: ("validation", "The request is not valid"),
    426: ("upgrade-required", "The request must be an upgrade"),
    429: ("too-many-requests", "Too many requests"),
    431: ("head-too-large", "The head of the request is too large"),
    500: ("internal", "An error of the service"),
    503: ("unavailable", "The service cannot serve this now"),
}


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One error; `errors` are (JSON pointer, one sentence) pairs, `more` are further members."""

    status: int
    type: str
    title: str
    detail: str
    errors: Sequence[tuple[str, str]] = ()
    more: Mapping[str, Any] = {}
    headers: Mapping[str, str] = {}

    def members(self, instance: str | None = None) -> dict[str, Any]:
        """The JSON object; `instance` is the path of the request that met it."""
        members: dict[str, Any] = {
            "type": f"/problems/{self.type}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if instance is not None:
            members["instance"] = instance
        if self.errors:
            members["errors"] = [
                {"pointer": at, "detail": text} for at, text in self.errors[:SHOWN_ERRORS]
            ]
        return {**members, **self.more}

    def response(self, scope: Scope) -> Response:
        return Response(
            msgspec.json.encode(self.members(path_of(scope))),
            self.status,
            {"Cache-Control": "no-store", **self.headers},
            media_type=MEDIA_TYPE,
        )


def path_of(scope: Scope) -> str:
    """The path as it was asked for, percent-encoded."""
    raw = scope.get("raw_path")
    return raw.decode("ascii", "replace") if raw else quote(scope["path"])


def of_status(status: int, detail: str, **more: Any) -> Problem:
    """The problem of a status that needs no explanation but `detail`."""
    type, title = STATUSES.get(status, ("other", "The request failed"))
    return Problem(status=status, type=type, title=title, detail=detail, **more)


def of_error(error: TandemError) -> Problem:
    """What an error of ours means over HTTP. Raises it again if it means nothing to a client."""
    for cls in type(error).__mro__:
        if cls in KNOWN:
            status, kind, title = KNOWN[cls]
            break
    else:
        raise error
    errors: Sequence[tuple[str, str]] = ()
    headers: dict[str, str] = {}
    more: dict[str, Any] = {}
    detail = str(error)
    if isinstance(error, Invalid):
        errors = error.errors
        detail = "; ".join(f"{at} {text}" if at else text for at, text in errors)
    elif isinstance(error, UnknownTask):
        errors = [("/task", str(error))]
    elif isinstance(error, Unavailable):
        headers = {"Retry-After": FULL_RETRY_AFTER if isinstance(error, Full) else RETRY_AFTER}
    elif isinstance(error, OffsetMismatch):
        headers = {"Upload-Offset": str(error.expected), "Upload-Complete": "?0"}
        more = {"expected-offset": error.expected, "provided-offset": error.provided}
    return Problem(
        status=status,
        type=kind,
        title=title,
        detail=detail[:2000],
        errors=errors,
        headers=headers,
        more=more,
    )


def of_http(error: HTTPException) -> Problem:
    """The same for an HTTPException: ours, the files', or the router's."""
    return of_status(error.status_code, str(error.detail), headers=dict(error.headers or {}))


# ----------------------------------------------------------------------------------------- handlers


def explained(request: Request, error: TandemError | HTTPException) -> Response:
    """The answer to a request that met this error."""
    if isinstance(error, TandemError):
        return of_error(error).response(request.scope)
    headers = dict(error.headers or {})
    detail = str(error.detail)
    if error.status_code in (204, 304):
        return Response(status_code=error.status_code, headers=headers)
    if error.status_code == 404 and detail == "Not Found":
        detail = f"there is nothing at {path_of(request.scope)[:200]}"
    if error.status_code == 405:
        headers = {"Allow": ", ".join(sorted(_allowed(request)))}
        detail = f"{request.method[:20]} is not among them: {headers['Allow']}"
    return of_status(error.status_code, detail, headers=headers).response(request.scope)


def _allowed(request: Request) -> set[str]:
    # One path may have a route for each of its methods; the router only tells of the first.
    methods: set[str] = set()
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            methods |= set(route.methods or ())
    return methods


async def _handle(request: Request, error: Exception) -> Response:
    if not isinstance(error, TandemError | HTTPException):
        raise error
    return explained(request, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    errors = [
        ("".join(f"/{part}" for part in one["loc"][1:]), str(one["msg"])) for one in error.errors()
    ]
    return of_error(Invalid(errors)).response(request.scope)


HANDLERS: dict[Any, Any] = {
    TandemError: _handle,
    HTTPException: _handle,
    RequestValidationError: _validation_error,
}
