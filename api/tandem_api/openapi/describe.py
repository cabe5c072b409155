"""What routes add to /openapi.json beyond what FastAPI takes from their signatures."""

from typing import Any

from fastapi import APIRouter, Response

from tandem_api.http.body import JSON
from tandem_api.http.parameters import KEY_PATTERN, MAX_KEY_BYTES, MAX_WAIT_SECONDS
from tandem_api.http.problems import MEDIA_TYPE, STATUSES
from tandem_api.http.routing import DocumentedRoute

Responses = dict[int | str, dict[str, Any]]

TIME: dict[str, Any] = {"type": "string", "format": "date-time"}
# Of several documents in one body; generated clients would read it as a single one.
TEXT: dict[str, Any] = {"type": "string"}
BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
_PROBLEM_HEADERS = {401: "WWW-Authenticate", 416: "Content-Range", 503: "Retry-After"}


def ref(name: str) -> dict[str, str]:
    """A reference to a component, see `document.py`."""
    return {"$ref": f"#/components/schemas/{name}"}


def content(schema: dict[str, Any], *media_types: str) -> dict[str, Any]:
    """The same schema for each media type."""
    return {media_type: {"schema": schema} for media_type in media_types}


def response(
    description: str, body: dict[str, Any] | None = None, **headers: str
) -> dict[str, Any]:
    """One of a route's `responses`; `headers` are descriptions, with _ for - in their names."""
    found: dict[str, Any] = {"description": description}
    if body is not None:
        found["content"] = body
    if headers:
        found["headers"] = {
            name.replace("_", "-"): {"description": text, "schema": {"type": "string"}}
            for name, text in headers.items()
        }
    return found


def job_response(description: str, **headers: str) -> dict[str, Any]:
    """A response whose body is a job."""
    return response(description, content(ref("Job"), JSON), **headers)


def problems(*statuses: int, **descriptions: str) -> Responses:
    """The `responses` of these statuses, and of others with a description: `_409="…"`."""
    texts = {status: STATUSES[status][1] for status in statuses}
    texts |= {int(status[1:]): text for status, text in descriptions.items()}
    found: Responses = {}
    for status, text in texts.items():
        found[status] = response(text, content(ref("Problem"), MEDIA_TYPE))
        if status in _PROBLEM_HEADERS:
            found[status]["headers"] = {_PROBLEM_HEADERS[status]: {"schema": {"type": "string"}}}
    return found


# The responses of every route that needs a key and Redis. `default` keeps FastAPI from adding its
# own 422, which is never sent.
COMMON: Responses = {
    **problems(401, 503),
    "default": response("Any other error", content(ref("Problem"), MEDIA_TYPE)),
}
BODY_PROBLEMS = problems(400, 408, 413, 415, 422)


def json_router(tag: str, **options: Any) -> APIRouter:
    """A router whose endpoints mostly return values that FastAPI turns into responses."""
    return APIRouter(tags=[tag], **{"route_class": DocumentedRoute, **options})


def raw_router(tag: str, **options: Any) -> APIRouter:
    """A router whose endpoints return their own Response, and need a key and Redis."""
    return json_router(tag, default_response_class=Response, responses=COMMON, **options)


def parameter(
    name: str, place: str, description: str, schema: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A parameter that is not in the signature of its endpoint."""
    found = {
        "name": name,
        "in": place,
        "description": description,
        "schema": schema or {"type": "string"},
    }
    return {**found, "required": True} if place == "path" else found


def list_parameter(name: str, description: str, values: list[str]) -> dict[str, Any]:
    """A query parameter that takes some of these values, separated by commas or repeated."""
    items = {"type": "string", "enum": values}
    schema = {"type": "array", "items": items, "minItems": 1}
    return {**parameter(name, "query", description, schema), "style": "form", "explode": False}


JOB_ID = parameter("id", "path", "The job's id")
TRACEPARENT = parameter("traceparent", "header", "W3C trace context, passed on to the worker")
SUBMIT_HEADERS = [
    parameter(
        "Idempotency-Key",
        "header",
        f"Quoted or bare, at most {MAX_KEY_BYTES} bytes",
        {"type": "string", "maxLength": MAX_KEY_BYTES, "pattern": KEY_PATTERN},
    ),
    parameter(
        "Prefer",
        "header",
        f"`wait=N`: seconds to wait for the final job, at most {MAX_WAIT_SECONDS:g}",
    ),
    TRACEPARENT,
]
SUBMITTED: Responses = {
    200: job_response("Final within `Prefer: wait`"),
    202: job_response(
        "Accepted: the job survives any crash from now on",
        Location="the job",
        Retry_After="seconds to wait before the job is read",
        Preference_Applied="`wait=N`, if it was asked for",
        Idempotent_Replayed="`true` if the key was used before: this is the first job",
    ),
}
