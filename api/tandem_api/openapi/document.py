"""/openapi.json, from the routes as FastAPI describes them and the catalogue."""

import re
from contextlib import suppress
from copy import deepcopy
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Response
from jsonschema_rs import Draft202012Validator, ReferencingError, ValidationError

from tandem_api.http import problems
from tandem_api.http.body import JSON, JsonBytes
from tandem_api.openapi.describe import TIME, ref
from tandem_api.openapi.tidy import tidy_document
from tandem_api.state import StateDep
from tandem_api.validation.catalogue import Catalogue
from tandem_api.validation.filter import CURSOR_SCHEMA, FILTER_SCHEMA
from tandem_api.validation.schema import KEY_SCHEMA, OPTIONS_SCHEMA, job_schema
from tandem_api.validation.submission import (
    DURATIONS,
    MAX_DELAY_SECONDS,
    MAX_TIMEOUT_SECONDS,
    RETRY_DURATIONS,
)
from tandem_shared.catalogue import CatalogueEntry
from tandem_shared.errors import Unavailable
from tandem_shared.jobs.view import JobView
from tandem_shared.settings import Settings
from tandem_shared.streams.reader import ENTRY_TYPES

ABOUT = (
    "A task queue over HTTP: submit a job, poll it or wait for it, stream its output, fetch its"
    f" result. Every error is a problem of RFC 9457 (`{problems.MEDIA_TYPE}`)."
)
TAGS = [
    {"name": "jobs", "description": "Submit, poll, wait, stream, cancel, replay, delete."},
    {"name": "files", "description": "Upload, download, delete."},
    {"name": "operating", "description": "Tasks, queues, workers, probes and metrics."},
]
FIRST_EXAMPLE = "http.request"  # harms nobody, while others send mail or change data
EXAMPLE_JOB: dict[str, Any] = {
    "id": "01M7Z1YRWG26XDJFATWWCa",
    "task": "http.request",
    "state": "succeeded",
    "done": True,
    "queue": "default",
    "priority": "normal",
    "attempt": 1,
    "max_attempts": 3,
    "submitted_at": "2026-01-31T12:00:00.000Z",
    "scheduled_for": None,
    "started_at": "2026-01-31T12:00:00.010Z",
    "finished_at": "2026-01-31T12:00:00.250Z",
    "timeout": 30,
    "progress": None,
    "result": {"status": 200, "url": "https://example.org/", "elapsed_ms": 231, "text": "…"},
    "error": None,
    "waiting_for": None,
    "cancel_requested": False,
    "tags": {"customer": "17"},
    "files": [],
    "attempts": [
        {
            "attempt": 1,
            "started_at": "2026-01-31T12:00:00.010Z",
            "finished_at": "2026-01-31T12:00:00.250Z",
            "outcome": "succeeded",
            "worker": "host-4711-9e08ef25",
        }
    ],
    "links": {
        "self": "/v1/jobs/01M7Z1YRWG26XDJFATWWCa",
        "stream": "/v1/jobs/01M7Z1YRWG26XDJFATWWCa/stream",
        "result": "/v1/jobs/01M7Z1YRWG26XDJFATWWCa/result",
    },
}
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")  # in the name of a component
_COMPONENTS = "#/components/schemas/"

router = APIRouter(include_in_schema=False, default_response_class=Response)


@router.get("/openapi.json")
async def show_openapi(state: StateDep) -> Response:
    """The document; while Redis is away, with the tasks known so far."""
    return JsonBytes(await state["openapi"](), 200, {"Cache-Control": "no-cache"})


class Document:
    """The document as bytes, rebuilt when the catalogue has changed."""

    def __init__(self, fastapi: FastAPI, catalogue: Catalogue, settings: Settings) -> None:
        self._fastapi, self._catalogue, self._settings = fastapi, catalogue, settings
        self._made = b""
        self._number = -1  # of the catalogue that it was built from

    async def read(self) -> bytes:
        """The document of the catalogue as it is now, or as it was when Redis last answered."""
        with suppress(Unavailable):
            await self._catalogue.refresh()
        if self._number != self._catalogue.number:
            self._made = msgspec.json.encode(
                openapi(self._fastapi, list(self._catalogue.entries.values()), self._settings)
            )
            self._number = self._catalogue.number
        return self._made


def openapi(fastapi: FastAPI, entries: list[CatalogueEntry], settings: Settings) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the routes and these tasks."""
    document = deepcopy(fastapi.openapi())  # FastAPI caches its part, which takes longest
    document["components"]["schemas"] |= {**_static_schemas(), **_task_schemas(entries)}
    document["components"]["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key, tk_<id>_<secret>.",
        }
    }
    # Without keys the API is open, but only to this machine.
    document["security"] = [{"key": []}] if settings.keys else [{}, {"key": []}]
    document["servers"] = [{"url": settings.root_path or "/"}]
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"][JSON]
    if examples := _examples(entries):
        body["examples"] = examples
    tidied: dict[str, Any] = tidy_document(document)
    return tidied


def _static_schemas() -> dict[str, Any]:
    """The components that FastAPI does not know and that do not depend on the catalogue."""
    _, schemas = msgspec.json.schema_components([JobView], ref_template=f"{_COMPONENTS}{{name}}")
    job = schemas.pop("JobView")
    return {
        **schemas,
        "Job": {**job, "examples": [EXAMPLE_JOB]},
        "Problem": problems.SCHEMA,
        "ProblemField": problems.FIELD_SCHEMA,
        "ReplayFilter": _with_cursor(FILTER_SCHEMA),
        "ReplayedJob": {
            "type": "object",
            "description": "The id of a new job, or why there is none.",
            "required": ["replay_of"],
            "properties": {
                "replay_of": {"type": "string"},
                "id": {"type": "string"},
                "error": ref("Problem"),
            },
        },
        "Options": {
            **_bounded(OPTIONS_SCHEMA),
            "type": "object",
            "dependentRequired": {"concurrency_limit": ["concurrency_key"]},
            "description": "Options that are left out, or null, have the task's own defaults.",
        },
        "BulkItem": {
            "description": 'A job as for POST /v1/jobs, which may carry an "idempotency_key".',
            "type": "object",
            "required": ["task"],
            "properties": {
                "task": {"type": "string"},
                "payload": {"description": "as its task says"},
                "options": ref("Options"),
                "idempotency_key": KEY_SCHEMA,
            },
        },
        "BulkAnswer": {
            "oneOf": [
                _object({"id": {"type": "string"}}),
                _object({"error": ref("Problem")}),
            ]
        },
        "JobList": _object(
            {
                "items": {"type": "array", "items": ref("Job")},
                "next_cursor": {"type": ["string", "null"]},
            }
        ),
        "Entry": _object(
            {
                "id": {"type": "string", "description": "for `after` and Last-Event-ID"},
                "type": {"enum": list(ENTRY_TYPES)},
                "attempt": {"type": "integer", "minimum": 0},
                "at": TIME,
                "data": {"description": "of `state` and `end`: the job"},
            }
        ),
    }


def _with_cursor(filter_schema: dict[str, Any]) -> dict[str, Any]:
    fields = filter_schema["properties"]
    cursor = {**fields["cursor"], "pattern": CURSOR_SCHEMA["pattern"]}
    return {**filter_schema, "properties": {**fields, "cursor": cursor}}


def _bounded(options: dict[str, Any]) -> dict[str, Any]:
    """The schema of options with the largest number of seconds for each duration.

    Validation checks durations after it has parsed them, whether numbers or texts.
    """
    found = deepcopy(options)
    fields: dict[str, Any] = found["properties"]
    for field in (
        *(fields[name] for name in DURATIONS),
        *(fields["retry"]["properties"][name] for name in RETRY_DURATIONS),
    ):
        field["anyOf"][0]["maximum"] = MAX_DELAY_SECONDS
    limits = {"exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_SECONDS}
    fields["timeout"]["anyOf"][0] = {"type": "number", **limits}
    return found


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _task_schemas(entries: list[CatalogueEntry]) -> dict[str, Any]:
    """The payload and the job of each task, and `JobRequest`, which is one of the jobs."""
    schemas: dict[str, Any] = {}
    jobs: dict[str, str] = {}
    for entry in entries:
        payload = f"{entry.name}.payload"
        schemas |= _payload_schemas(entry, payload)
        job = job_schema(entry, ref(payload))
        job["properties"]["options"] = ref("Options")
        if _accepts_nothing(entry.payload_schema):
            job["required"] = ["task"]
        schemas[f"{entry.name}.job"] = {"description": entry.summary, **job}
        jobs[entry.name] = f"{_COMPONENTS}{entry.name}.job"
    schemas["JobRequest"] = (
        {
            "oneOf": [{"$ref": reference} for reference in jobs.values()],
            "discriminator": {"propertyName": "task", "mapping": jobs},
        }
        if jobs
        else {
            "description": "No worker has published a task yet.",
            **_object({"task": {"type": "string"}}),
        }
    )
    return schemas


def _accepts_nothing(schema: dict[str, Any]) -> bool:
    """Whether the payload may be left out, which means `{}`."""
    try:
        return Draft202012Validator(schema, offline=True).is_valid({})
    except (ValidationError, ReferencingError, ValueError):
        return True  # the API cannot use the schema, so only the worker checks


def _examples(entries: list[CatalogueEntry]) -> dict[str, Any]:
    """An example for each task that has one; the first is what a page fills in by itself."""
    return {
        entry.name: {
            "summary": f"{entry.name}: {entry.summary}" if entry.summary else entry.name,
            "value": {"task": entry.name, "payload": entry.example},
        }
        for entry in sorted(entries, key=lambda one: (one.name != FIRST_EXAMPLE, one.name))
        if entry.example is not None
    }


def _payload_schemas(entry: CatalogueEntry, name: str) -> dict[str, Any]:
    """A task's payload schema and its definitions as components, with their references moved."""
    schema = dict(entry.payload_schema)
    definitions: dict[str, Any] = schema.pop("$defs", {})
    names = {key: f"{entry.name}.{_UNSAFE.sub('_', key)}" for key in definitions}
    places = {f"#/$defs/{key}": _COMPONENTS + component for key, component in names.items()}
    found = {component: definitions[key] for key, component in names.items()}
    found[name] = schema
    if entry.example is not None:
        found[name].setdefault("examples", [entry.example])
    return {key: _moved(value, places, _COMPONENTS + name) for key, value in found.items()}


def _moved(schema: Any, places: dict[str, str], root: str) -> Any:
    """The schema with its references to `places`, and to its own root, as the document has them."""
    if isinstance(schema, list):
        return [_moved(item, places, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, places, root) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = places.get(reference, root + reference[1:])
    return moved
