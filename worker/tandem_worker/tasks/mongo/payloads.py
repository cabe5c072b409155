"""What the payloads of the MongoDB tasks share."""

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tandem_worker.connectors.mongo import allowlist
from tandem_worker.connectors.mongo.connections import Target
from tandem_worker.connectors.mongo.extended_json import Form, to_bson
from tandem_worker.errors import TaskError
from tandem_worker.jobs.deadline import call_timeout
from tandem_worker.jobs.job import Job

_COLLECTION = {
    "not": {
        "pattern": r"^(system\.|tandem_applied$)",
        "description": "must not be one of MongoDB's own, nor of Tandem's",
    }
}


_OWN = "must not be admin, config or local, which are MongoDB's own"


_DATABASE = {"not": {"type": "string", "pattern": r"^(admin|config|local)$", "description": _OWN}}


Query = Annotated[dict[str, Any], Field(description="a MongoDB query; Extended JSON")]


Extended = Annotated[
    Form, Field(description="the documents' form: canonical keeps every number's type")
]


class _Place(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    connection: Annotated[
        str, Field(min_length=1, max_length=128, description="a name from the worker's settings")
    ]
    database: Annotated[
        str | None,
        Field(
            pattern=r'^[^/\\. "$*<>:|?\u0000]{1,63}$',
            description="that of the connection's URL if not given",
            json_schema_extra=_DATABASE,
        ),
    ] = None
    collection: Annotated[str, Field(pattern=r"^[^$\u0000]{1,200}$", json_schema_extra=_COLLECTION)]


class _Read(_Place):
    filter: Query = {}
    projection: Annotated[
        dict[str, Any] | None, Field(description="the fields wanted, {name: 1}")
    ] = None
    sort: Annotated[
        dict[str, Literal[1, -1] | dict[str, Any]] | None,
        Field(description="1 is ascending, -1 descending"),
    ] = None
    limit: Annotated[int, Field(ge=1, le=(1 << 31) - 1)] | None = None
    extended_json: Extended = "relaxed"


def _target(job: Job, place: _Place) -> Target:
    allowlist.check_collection(place.collection)
    return Target(place.database, place.collection, time.monotonic() + call_timeout(job))


def _found(job: Job, payload: _Read, *, raw: bool = False) -> Any:
    filter = _document(to_bson(payload.filter, "filter"), "filter")
    allowlist.check_filter(filter)
    projection = (
        None
        if payload.projection is None
        else _document(to_bson(payload.projection, "projection"), "projection")
    )
    allowlist.check_projection(projection or {})
    sort = payload.sort or {}
    for name, direction in sort.items():
        if isinstance(direction, dict) and direction != {"$meta": "textScore"}:
            raise TaskError(
                "forbidden_operator", f"sort/{name[:100]} is 1, -1 or textScore", retryable=False
            )
    return job.mongo(payload.connection).find(
        _target(job, payload),
        filter,
        projection=projection,
        sort=list(sort.items()),
        limit=payload.limit or 0,
        raw=raw,
    )


def _document(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TaskError(
            "invalid_document", f"{place} is a single value, not an object", retryable=False
        )
    return value
