"""What OpenAPI says of our own routes: everything that does not depend on the catalogue."""

from typing import Any

from tandem_api.http.problems import MEDIA_TYPE
from tandem_api.jobs.listing import PARAMETERS as PARAMETERS_OF_A_LIST
from tandem_api.jobs.replays import BODY as REPLAYED
from tandem_api.openapi.schemas import list_of, ref

TAGS = [
    {
        "name": "jobs",
        "description": "Submit, look at, wait for, stream, cancel, run again, forget.",
    },
    {"name": "files", "description": "Upload, download, remove."},
    {"name": "operating", "description": "What there is to run, what waits, who works."},
]


def _problem(description: str, **headers: str) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": description,
        "content": {MEDIA_TYPE: {"schema": ref("Problem")}},
    }
    if headers:
        answer["headers"] = _headers(**headers)
    return answer


def _headers(**texts: str) -> dict[str, Any]:
    return {
        name.replace("_", "-"): {"schema": {"type": "string"}, "description": text}
        for name, text in texts.items()
    }


RESPONSES: dict[str, Any] = {
    "Malformed": _problem("Malformed"),
    "Unauthenticated": _problem("No valid API key", WWW_Authenticate="Bearer"),
    "NotFound": _problem("No such thing, or not this tenant's"),
    "Timeout": _problem("The body did not come in time"),
    "Conflict": _problem(
        "The upload is not at that place: where it goes on is in Upload-Offset, if it does"
    ),
    "PreconditionFailed": _problem("The file is not the one that If-Match names"),
    "TooLarge": _problem("Above a limit"),
    "UnsupportedMediaType": _problem("Another content type is wanted"),
    "RangeNotSatisfiable": _problem(
        "The range is outside of the file", Content_Range="`bytes */` and the size"
    ),
    "Invalid": _problem("What the schema refuses: `errors` has a JSON pointer for each"),
    "Unavailable": _problem(
        "Redis is away, the backlog is full, or the process ends", Retry_After="seconds"
    ),
}
_EACH = {"401": ref("Unauthenticated", "responses"), "503": ref("Unavailable", "responses")}
_FOUND = {**_EACH, "404": ref("NotFound", "responses")}
_BODY = {
    **_EACH,
    "400": ref("Malformed", "responses"),
    "408": ref("Timeout", "responses"),
    "413": ref("TooLarge", "responses"),
    "415": ref("UnsupportedMediaType", "responses"),
    "422": ref("Invalid", "responses"),
}


def _parameter(
    name: str, place: str, text: str, schema: dict[str, Any] | None = None
) -> dict[str, Any]:
    parameter = {
        "name": name,
        "in": place,
        "description": text,
        "schema": schema or {"type": "string"},
    }
    return {**parameter, "required": True} if place == "path" else parameter


PARAMETERS: dict[str, Any] = {
    "Id": _parameter("id", "path", "The job's id"),
    "IdempotencyKey": _parameter("Idempotency-Key", "header", "Quoted or bare, at most 255 bytes"),
    "Prefer": _parameter(
        "Prefer", "header", "`wait=N`: seconds to wait for the final job, at most 30"
    ),
    "Traceparent": _parameter("traceparent", "header", "W3C trace context, carried to the worker"),
    "Wait": _parameter("wait", "query", "Long-poll: `25s` or a number of seconds, at most 30"),
    "Payload": _parameter(
        "payload", "query", "Adds the payload", {"type": "boolean", "default": False}
    ),
    "IfNoneMatch": _parameter("If-None-Match", "header", "The ETag that is known"),
    "Types": _parameter(
        "types", "query", "Entry types, separated by commas; `end` comes in any case"
    ),
    "After": _parameter("after", "query", "The id of the last entry that is known"),
    "LastEventId": _parameter("Last-Event-ID", "header", "The same, as an EventSource sends it"),
}


def _parameters(*names: str) -> list[dict[str, str]]:
    return [ref(name, "parameters") for name in names]


def _json(description: str, schema: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": description,
        "content": {"application/json": {"schema": schema}},
    }
    if headers:
        answer["headers"] = _headers(**headers)
    return answer


def _operation(id: str, tag: str, summary: str, **more: Any) -> dict[str, Any]:
    return {"operationId": id, "tags": [tag], "summary": summary, **more}


def _get(
    id: str, summary: str, schema: dict[str, Any], answers: dict[str, Any], **more: Any
) -> dict[str, Any]:
    return {
        "get": _operation(
            id, "operating", summary, responses={"200": _json("OK", schema), **answers}, **more
        )
    }


def _turn(id: str, summary: str) -> dict[str, Any]:
    name = [_parameter("name", "path", "The queue's name")]
    answers = {"200": _json("The queue as it now is", ref("Queue")), **_FOUND}
    return {"post": _operation(id, "operating", summary, parameters=name, responses=answers)}


def paths(examples: dict[str, Any]) -> dict[str, Any]:
    """The paths of our own routes; `examples` are of whole jobs, by task."""
    job = ref("Job")
    new = {"schema": ref("NewJob"), **({"examples": examples} if examples else {})}
    accepted = _json(
        "Accepted: it survives any crash from now on",
        job,
        Location="the job",
        Retry_After="seconds until the first look at it",
        Preference_Applied="`wait=N` if it was asked for",
        Idempotent_Replayed="`true` if the key was known: this is the first job",
    )
    item, answer = ref("BulkItem"), ref("BulkAnswer")
    lines = "application/x-ndjson"
    bulk = {
        "application/json": {"schema": {"type": "array", "maxItems": 10_000, "items": item}},
        lines: {"schema": item},
    }
    answers = {
        "application/json": {"schema": {"type": "array", "items": answer}},
        lines: {"schema": answer},
    }
    streamed = {
        kind: {"schema": ref("Entry")} for kind in ("text/event-stream", lines, "application/jsonl")
    }
    etag = _json(
        "The job",
        job,
        ETag="changes with everything that a client can see",
        Cache_Control="private",
    )
    name = [_parameter("task", "path", "The task's name")]
    return {
        "/v1/jobs": {
            "post": _operation(
                "submitJob",
                "jobs",
                "Submit one job",
                parameters=_parameters("IdempotencyKey", "Prefer", "Traceparent"),
                requestBody={"required": True, "content": {"application/json": new}},
                responses={
                    "202": accepted,
                    "200": _json("Final within `Prefer: wait`", job),
                    **_BODY,
                },
            ),
            "get": _operation(
                "listJobs",
                "jobs",
                "List and search, newest first",
                parameters=[
                    _parameter(name, "query", *more) for name, *more in PARAMETERS_OF_A_LIST
                ],
                responses={
                    "200": _json("A page", ref("JobList"), Link='the next page, `rel="next"`'),
                    "400": ref("Malformed", "responses"),
                    "422": ref("Invalid", "responses"),
                    **_EACH,
                },
            ),
        },
        "/v1/jobs/bulk": {
            "post": _operation(
                "submitJobs",
                "jobs",
                "Submit many jobs: an array, or any number of lines",
                parameters=_parameters("Traceparent"),
                requestBody={"required": True, "content": bulk},
                responses={
                    "200": {
                        "description": "One answer for each item, in order",
                        "content": answers,
                    },
                    **_BODY,
                },
            )
        },
        "/v1/jobs/{id}": {
            "get": _operation(
                "showJob",
                "jobs",
                "Look at a job, or wait for it",
                parameters=_parameters("Id", "Wait", "Payload", "IfNoneMatch"),
                responses={
                    "200": etag,
                    "304": {"description": "As If-None-Match knows it"},
                    "400": ref("Malformed", "responses"),
                    **_FOUND,
                },
            ),
            "delete": _operation(
                "forgetJob",
                "jobs",
                "Forget a final job and its files",
                parameters=_parameters("Id"),
                responses={
                    "204": {"description": "Nothing is left of it"},
                    "409": _problem("The job is not final"),
                    **_FOUND,
                },
            ),
        },
        "/v1/jobs/replay": {
            "post": _operation(
                "replayJobs",
                "jobs",
                "Run all jobs again that failed and match a filter, each of them once however often this is asked",
                parameters=_parameters("Traceparent"),
                requestBody={
                    "required": True,
                    "content": {"application/json": {"schema": REPLAYED}},
                },
                responses={"200": _json("How far it came", ref("Replays")), **_BODY},
            )
        },
        "/v1/jobs/{id}/replay": {
            "post": _operation(
                "replayJob",
                "jobs",
                "Run a failed or cancelled job again, as a new job",
                parameters=_parameters("Id", "IdempotencyKey", "Prefer", "Traceparent"),
                responses={
                    "202": accepted,
                    "200": _json("Final within `Prefer: wait`", job),
                    "400": ref("Malformed", "responses"),
                    "409": _problem("The job neither failed nor was cancelled"),
                    "422": ref("Invalid", "responses"),
                    **_FOUND,
                },
            )
        },
        "/v1/jobs/{id}/result": {
            "get": _operation(
                "showResult",
                "jobs",
                "The result alone",
                parameters=_parameters("Id"),
                responses={
                    "200": _json("The bare result", {}),
                    "202": _json("Not final yet", job, Retry_After="seconds"),
                    "303": {
                        "description": "It is kept as a file",
                        "headers": _headers(Location="the file"),
                    },
                    "409": _problem("The job failed or was cancelled"),
                    **_FOUND,
                },
            )
        },
        "/v1/jobs/{id}/cancel": {
            "post": _operation(
                "cancelJob",
                "jobs",
                "Cancel, whatever its state",
                parameters=_parameters("Id"),
                responses={"202": _json("The job as it now is", job), **_FOUND},
            )
        },
        "/v1/jobs/{id}/stream": {
            "get": _operation(
                "streamJob",
                "jobs",
                "What happens to it and what it says, live and resumable",
                parameters=_parameters("Id", "Types", "After", "LastEventId"),
                responses={
                    "200": {
                        "description": "Entries up to `end`",
                        "content": {**streamed, "text/csv": {}},
                    },
                    "204": {"description": "`after` is the id of `end`: there is nothing more"},
                    "400": ref("Malformed", "responses"),
                    "406": _problem("No format of Accept is available"),
                    **_FOUND,
                },
            )
        },
        "/v1/tasks": _get("listTasks", "The catalogue", list_of(ref("Task")), _EACH),
        "/v1/tasks/{task}": _get("showTask", "One task", ref("Task"), _FOUND, parameters=name),
        "/v1/queues": _get(
            "listQueues", "Queues by what waits in them", list_of(ref("Queue")), _EACH
        ),
        "/v1/queues/{name}/pause": _turn("pauseQueue", "Let no more of its jobs start"),
        "/v1/queues/{name}/resume": _turn("resumeQueue", "Let them start again"),
        "/v1/workers": _get(
            "listWorkers", "Who is alive, and what each runs", list_of(ref("Worker")), _EACH
        ),
        "/livez": _get("live", "Whether the process answers", ref("Health"), {}, security=[]),
        "/readyz": _get(
            "ready",
            "Whether it can take and give jobs",
            ref("Health"),
            {"503": ref("Unavailable", "responses")},
            security=[],
        ),
        "/metrics": {
            "get": _operation(
                "showMetrics",
                "operating",
                "Queues and requests, for Prometheus",
                responses={
                    "200": {
                        "description": "OK",
                        "content": {"text/plain": {}, "application/openmetrics-text": {}},
                    },
                    "401": ref("Unauthenticated", "responses"),
                },
            )
        },
    }


# Of the files' routes, by method: what a client meets there, which FastAPI does not know.
_LOOKED_UP = {**_FOUND, "412": ref("PreconditionFailed", "responses")}
_FILE_ERRORS: dict[str, dict[str, Any]] = {
    "post": _BODY,
    "get": {
        **_LOOKED_UP,
        "409": ref("Conflict", "responses"),
        "416": ref("RangeNotSatisfiable", "responses"),
    },
    "head": _LOOKED_UP,
    "delete": _FOUND,
    "options": _EACH,
    "patch": {**_BODY, **_FOUND, "409": ref("Conflict", "responses")},
}


def tidy(known: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's own document, with our problems in place of its errors."""
    schemas = known.get("components", {}).get("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for path, operations in known["paths"].items():
        for method, operation in operations.items():
            fine = {
                status: answer
                for status, answer in operation["responses"].items()
                if status < "400"
            }
            operation["responses"] = {**fine, **_FILE_ERRORS[method]}
            if "job" in path:
                operation["responses"].pop("409", None)  # what a job produced is complete
    return known
