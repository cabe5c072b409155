"""The HTTP response to every error: `application/problem+json` of RFC 9457.

Errors of `tandem_shared` say what happened; the tables here map them to statuses and titles. An
unexpected error is a 500 that shows only a trace id, see `edge.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import structlog
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
    OtherUploadProtocol,
    TandemError,
    TooLarge,
    Unavailable,
    UnknownTask,
)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = "1"
FULL_RETRY_AFTER_SECONDS = "5"
# The key of a scope with the path under which a proxy publishes the API. ASGI's own `root_path`
# must be part of `path`, which it is not once the proxy has removed it.
ROOT_PATH = "tandem.root_path"
MAX_ERRORS = 20  # of one problem
MAX_DETAIL_CHARS = 2000

log = structlog.get_logger()

# The status of each error, and its own type and title where STATUSES has another error's.
ERRORS: dict[type[TandemError], tuple[int, tuple[str, str] | None]] = {
    Malformed: (400, None),
    Invalid: (422, None),
    UnknownTask: (422, ("unknown-task", "The task is not known")),
    KeyReused: (422, ("idempotency-key-reused", "The idempotency key was used for something else")),
    TooLarge: (413, None),
    # The status that tus 1.0 has for this.
    OtherUploadProtocol: (412, ("upload-protocol", "The protocol of the upload is not supported")),
    NotFound: (404, None),
    BadCursor: (400, ("unknown-position", "The position is not known")),
    Conflict: (409, None),
    OffsetMismatch: (409, ("upload-offset", "The upload continues at another offset")),
    Full: (503, ("backlog-full", "The backlog is full")),
    Unavailable: (503, None),
}
NO_RESULT = "The job has no result"
# The last part of `type`, and `title`.
STATUSES: dict[int, tuple[str, str]] = {
    400: ("malformed", "The request is malformed"),
    401: ("unauthenticated", "An API key is needed"),
    403: ("forbidden", "This is not allowed"),
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "The method is not allowed here"),
    406: ("not-acceptable", "None of the accepted formats is available"),
    408: ("timeout", "The request took too long"),
    409: ("conflict", "The request does not fit the current state"),
    412: ("precondition-failed", "A precondition failed"),
    413: ("too-large", "The request is too large"),
    415: ("unsupported-media-type", "The content type is not supported"),
    416: ("range-not-satisfiable", "The range is outside the file"),
    422: ("validation", "The request is not valid"),
    426: ("upgrade-required", "The request must be an upgrade"),
    429: ("too-many-requests", "Too many requests"),
    431: ("head-too-large", "The head of the request is too large"),
    500: ("internal", "Internal error"),
    501: ("not-implemented", "This is not implemented"),
    503: ("unavailable", "The service is not available now"),
    505: ("http-version", "The version of HTTP is not supported"),
}
# The status and title of every type of problem, by the last part of `type`.
PROBLEM_TYPES: dict[str, tuple[int, str]] = {
    **{type: (status, title) for status, (type, title) in STATUSES.items()},
    **{words[0]: (status, words[1]) for status, words in ERRORS.values() if words is not None},
    "job-failed": (409, NO_RESULT),
    "job-cancelled": (409, NO_RESULT),
}
FIELD_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "One field or parameter that is wrong.",
    "required": ["pointer", "detail"],
    "properties": {
        "pointer": {"type": "string", "description": "JSON pointer"},
        "detail": {"type": "string"},
    },
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "A problem of RFC 9457; further members depend on its type.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        **{name: {"type": "string"} for name in ("type", "title", "detail", "instance")},
        "status": {"type": "integer"},
        "errors": {
            "type": "array",
            "items": {"$ref": "#/components/schemas/ProblemField"},
        },
    },
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
        """The JSON object; `instance` is the path of the request that failed."""
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
                {"pointer": pointer, "detail": detail}
                for pointer, detail in self.errors[:MAX_ERRORS]
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
    """The path as it was requested, percent-encoded, with the proxy's prefix."""
    path: bytes = scope["raw_path"]
    root: str = scope.get(ROOT_PATH, "")
    return root + path.decode("ascii", "replace")


def status_problem(status: int, detail: str, **more: Any) -> Problem:
    """The problem with the type and title of a status."""
    type, title = STATUSES.get(status, ("other", "The request failed"))
    return Problem(status=status, type=type, title=title, detail=detail, **more)


def unexpected_problem(error: Exception, trace_id: str, event: str, **facts: Any) -> Problem:
    """Logs an unexpected error; the problem shows only the trace id of the log line."""
    log.error(event, trace_id=trace_id, **facts, exc_info=error)
    return status_problem(500, f"logged under the trace id {trace_id}", more={"trace_id": trace_id})


def error_problem(error: TandemError | HTTPException) -> Problem:
    """The problem that a client gets for an error. Raises an error that ERRORS does not cover."""
    if isinstance(error, HTTPException):
        return status_problem(
            error.status_code, str(error.detail), headers=dict(error.headers or {})
        )
    known = next((ERRORS[cls] for cls in error.__class__.__mro__ if cls in ERRORS), None)
    if known is None:
        raise error
    status, words = known
    type, title = words or STATUSES[status]
    errors: Sequence[tuple[str, str]] = ()
    headers: dict[str, str] = {}
    more: dict[str, Any] = {}
    detail = str(error)
    if isinstance(error, Invalid):
        errors = error.errors
        detail = "; ".join(f"{pointer} {text}".strip() for pointer, text in errors)
    elif isinstance(error, UnknownTask):
        errors = [("/task", detail)]
    elif isinstance(error, Unavailable):
        full = isinstance(error, Full)
        headers = {"Retry-After": FULL_RETRY_AFTER_SECONDS if full else RETRY_AFTER_SECONDS}
    elif isinstance(error, OffsetMismatch):
        headers = {"Upload-Offset": str(error.expected), "Upload-Complete": "?0"}
        more = {"expected-offset": error.expected, "provided-offset": error.provided}
    return Problem(
        status=status,
        type=type,
        title=title,
        detail=detail[:MAX_DETAIL_CHARS],
        errors=errors,
        headers=headers,
        more=more,
    )


def error_response(request: Request, error: TandemError | HTTPException) -> Response:
    """The response to a request that failed with this error."""
    problem = error_problem(error)
    if problem.status == 404 and problem.detail == "Not Found":  # the router's
        path = path_of(request.scope)[:200]
        detail = f"there is nothing at {path}"
        if path.endswith("/") and len(path) > 1:
            detail += f"; paths have no slash at their end: {path.rstrip('/')}"
        problem = msgspec.structs.replace(problem, detail=detail)
    elif problem.status == 405:
        allowed = ", ".join(sorted(_allowed_methods(request)))
        detail = f"{request.method[:20]} is not allowed; use {allowed}"
        problem = msgspec.structs.replace(problem, detail=detail, headers={"Allow": allowed})
    return problem.response(request.scope)


def _allowed_methods(request: Request) -> set[str]:
    # Each method of a path has its own route, and the router reports only the first one.
    methods: set[str] = set()
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            methods |= set(route.methods or ())
    return methods


async def _handle(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        error = Invalid(
            [
                ("".join(f"/{part}" for part in one["loc"][1:]), str(one["msg"]))
                for one in error.errors()
            ]
        )
    if isinstance(error, TandemError | HTTPException):
        return error_response(request, error)
    # Edge answers unexpected errors. FastAPI would send its own response before it raises them.
    raise error


HANDLERS: dict[Any, Any] = dict.fromkeys(
    (TandemError, HTTPException, RequestValidationError, Exception), _handle
)
