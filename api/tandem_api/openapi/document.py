"""/openapi.json, built from the catalogue whenever that changes, and /docs, which shows it."""

import re
from contextlib import suppress
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from jsonschema_rs import Draft202012Validator, ReferencingError, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tandem_api.http.problems import MEDIA_TYPE
from tandem_api.http.routing import Plain
from tandem_api.openapi.paths import PARAMETERS, RESPONSES, TAGS, paths, tidy
from tandem_api.openapi.schemas import SCHEMAS
from tandem_api.state import served
from tandem_api.validation.submission import KEY, OPTIONS, schema_of
from tandem_shared.catalogue import CatalogueEntry
from tandem_shared.errors import Unavailable

_NAME = re.compile(r"[^A-Za-z0-9._-]")
_SCHEMAS = "#/components/schemas/"


class Document:
    """The document as bytes, made again when the catalogue's number changes."""

    def __init__(self) -> None:
        self._made = b""
        self._number = -1

    async def show(self, request: Request) -> Response:
        """GET /openapi.json: also while Redis is away, then of the tasks that are known."""
        catalogue = served(request)["catalogue"]
        with suppress(Unavailable):  # what was read before still holds
            await catalogue.refresh()
        if self._number != catalogue.number:
            entries = [entry for _, entry in sorted(catalogue.entries.items())]
            self._made = msgspec.json.encode(
                document(request.app, entries, keys=bool(served(request)["settings"].keys))
            )
            self._number = catalogue.number
        return Response(
            self._made, 200, {"Cache-Control": "no-cache"}, media_type="application/json"
        )


async def show_docs(_request: Request) -> Response:
    """GET /docs."""
    return get_swagger_ui_html(openapi_url="/openapi.json", title="Tandem")


def document(app: FastAPI, entries: list[CatalogueEntry], *, keys: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document: what FastAPI knows of the files, and the rest by the catalogue."""
    known = tidy(get_openapi(title=app.title, version=app.version, routes=app.routes))
    schemas: dict[str, Any] = {
        **known.get("components", {}).get("schemas", {}),
        **SCHEMAS,
        "Options": _shown(OPTIONS),
    }
    jobs: dict[str, str] = {}
    for entry in entries:
        payload = f"{entry.name}.payload"
        schemas |= _payload_schemas(entry, payload)
        job = schema_of(entry, {"$ref": f"{_SCHEMAS}{payload}"})
        job["properties"]["options"] = {"$ref": f"{_SCHEMAS}Options"}
        if _takes_nothing(entry.payload_schema):
            job["required"] = ["task"]
        schemas[f"{entry.name}.job"] = {"title": entry.name, "description": entry.summary, **job}
        jobs[entry.name] = f"{_SCHEMAS}{entry.name}.job"
    schemas["NewJob"] = _one_of(jobs)
    schemas["BulkItem"] = {
        "description": 'A job as for POST /v1/jobs, which may also carry its own "idempotency_key".',
        "type": "object",
        "required": ["task"],
        "properties": {"task": {"type": "string"}, "payload": {}, "idempotency_key": KEY}
        | {"options": {"$ref": f"{_SCHEMAS}Options"}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": app.title, "version": app.version, "description": _ABOUT},
        "tags": TAGS,
        "paths": {**paths(_examples(entries)), **known["paths"]},
        "components": {
            "schemas": schemas,
            "responses": RESPONSES,
            "parameters": PARAMETERS,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, tk_<id>_<secret>.",
                }
            },
        },
        # Without keys the service is open, and only this machine reaches it.
        "security": [{"key": []}] if keys else [{}, {"key": []}],
    }


_ABOUT = (
    "A task queue over HTTP: submit a job, look at it or wait for it, stream what it says, take its result. "
    f"Every error is a problem of RFC 9457 (`{MEDIA_TYPE}`)."
)


def _takes_nothing(schema: dict[str, Any]) -> bool:
    """Whether a job may come without a payload, which is then `{}`."""
    try:
        return Draft202012Validator(schema, offline=True).is_valid({})
    except (ValidationError, ReferencingError, ValueError):
        return True  # a schema that cannot be used is left to the worker


def _one_of(jobs: dict[str, str]) -> dict[str, Any]:
    if not jobs:
        return {
            "type": "object",
            "required": ["task"],
            "description": "No worker has published a task yet.",
        }
    return {
        "oneOf": [{"$ref": reference} for reference in jobs.values()],
        "discriminator": {"propertyName": "task", "mapping": jobs},
    }


def _examples(entries: list[CatalogueEntry]) -> dict[str, Any]:
    return {
        entry.name: {
            "summary": entry.summary or entry.name,
            "value": {"task": entry.name, "payload": entry.example},
        }
        for entry in entries
        if entry.example is not None
    }


def _payload_schemas(entry: CatalogueEntry, name: str) -> dict[str, Any]:
    """A task's payload schema as components: its definitions move up, since a reference starts at the document."""
    schema = dict(entry.payload_schema)
    definitions: dict[str, Any] = schema.pop("$defs", {})
    places = {
        f"#/$defs/{one}": f"{_SCHEMAS}{entry.name}.{_NAME.sub('_', one)}" for one in definitions
    }
    found = {
        place.removeprefix(_SCHEMAS): definitions[at.removeprefix("#/$defs/")]
        for at, place in places.items()
    }
    found[name] = {"title": f"Payload of {entry.name}", **schema}
    if entry.example is not None:
        found[name].setdefault("examples", [entry.example])
    return {key: _moved(value, places, f"{_SCHEMAS}{name}") for key, value in found.items()}


def _moved(schema: Any, places: dict[str, str], root: str) -> Any:
    if isinstance(schema, list):
        return [_moved(one, places, root) for one in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, places, root) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = places.get(reference, root + reference[1:])
    return moved


def _shown(schema: dict[str, Any]) -> dict[str, Any]:
    return {
        **schema,
        "description": "Every option may be left out, or null: the task's own defaults then hold.",
    }


def routes() -> list[Route]:
    """Those of one application, which has a document of its own."""
    return [
        Route("/openapi.json", Plain(Document().show), methods=["GET"]),
        Route("/docs", Plain(show_docs), methods=["GET"]),
    ]
