"""What the payloads of the MongoDB tasks share."""

import time
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Literal

from pydantic import Field

from tandem_worker.connectors.mongo import allowlist
from tandem_worker.connectors.mongo.connection import CollectionRef
from tandem_worker.connectors.mongo.extended_json import Form, invalid, to_bson
from tandem_worker.errors import Permanent
from tandem_worker.jobs.deadline import call_timeout
from tandem_worker.jobs.job import Job
from tandem_worker.tasks.payload import ConnectionName, Payload

_NOT_RESERVED = {
    "not": {
        "pattern": r"^(system\.|tandem_applied$)",
        "description": "must not be a collection of MongoDB's own, nor of Tandem's",
    }
}
_NOT_SYSTEM = {
    "not": {
        "type": "string",
        "pattern": r"^(admin|config|local)$",
        "description": "must not be admin, config or local, which are MongoDB's own",
    }
}

MongoQuery = Annotated[dict[str, Any], Field(description="a MongoDB query, in Extended JSON")]
ExtendedJson = Annotated[
    Form, Field(description="form of the documents: canonical keeps the type of every number")
]


class MongoTarget(Payload):
    """The collection that a task works on."""

    connection: ConnectionName
    database: Annotated[
        str | None,
        Field(
            pattern=r'^[^/\\. "$*<>:|?\u0000]{1,63}$',
            description="default: the database in the connection's URL",
            json_schema_extra=_NOT_SYSTEM,
        ),
    ] = None
    collection: Annotated[
        str,
        Field(
            max_length=200,
            # MongoDB refuses names with empty parts.
            pattern=r"^[^$.\u0000]+(\.[^$.\u0000]+)*$",
            json_schema_extra=_NOT_RESERVED,
        ),
    ]


class MongoRead(MongoTarget):
    """A query for documents."""

    filter: MongoQuery = Field({})
    projection: Annotated[
        dict[str, Any] | None, Field(description="the fields to return, {name: 1}")
    ] = None
    sort: Annotated[
        dict[str, Literal[1, -1] | dict[str, Any]] | None,
        Field(description="1 is ascending, -1 descending"),
    ] = None
    limit: Annotated[int, Field(ge=1, le=(1 << 31) - 1)] | None = None
    extended_json: ExtendedJson = "relaxed"


def collection_ref(job: Job, target: MongoTarget) -> CollectionRef:
    """The collection, with the job's deadline. Raises TaskError."""
    allowlist.check_collection(target.collection)
    return CollectionRef(target.database, target.collection, time.monotonic() + call_timeout(job))


def find_documents(
    job: Job, payload: MongoRead, *, raw: bool = False
) -> AbstractAsyncContextManager[Any]:
    """The documents of a query that is checked first. Raises TaskError."""
    filter = to_document(payload.filter, "filter")
    allowlist.check_filter(filter)
    projection = None
    if payload.projection is not None:
        projection = to_document(payload.projection, "projection")
        allowlist.check_projection(projection)
    sort = payload.sort or {}
    for name, direction in sort.items():
        if isinstance(direction, dict) and direction != {"$meta": "textScore"}:
            message = f"sort/{name[:100]} must be 1, -1 or {{$meta: textScore}}"
            raise Permanent("forbidden_operator", message)
    return job.mongo(payload.connection).find(
        collection_ref(job, payload),
        filter,
        projection=projection,
        sort=list(sort.items()),
        limit=payload.limit or 0,
        raw=raw,
    )


def to_document(value: Any, place: str) -> dict[str, Any]:
    """The BSON document. Raises TaskError `invalid_document`."""
    document = to_bson(value, place)
    if not isinstance(document, dict):
        raise invalid(place, "is a single value, not an object")
    return document
