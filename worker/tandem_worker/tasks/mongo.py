"""MongoDB: `mongo.find`, `aggregate`, `insert`, `update`, `delete`, `export`, `import`. Documents are Extended JSON."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

import msgspec
from bson.raw_bson import RawBSONDocument
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from tandem_worker import operators
from tandem_worker.compression import Compression
from tandem_worker.documents import Form, to_bson, to_json
from tandem_worker.dumps import PORTION, Dump, Entry, entries, open_dump
from tandem_worker.errors import TaskError
from tandem_worker.files import FileRef
from tandem_worker.formats import Format, file_name, format_of
from tandem_worker.imports import Stored
from tandem_worker.inserts import Inserts, next_batch
from tandem_worker.job import Job
from tandem_worker.mongo import Target
from tandem_worker.task import task

REPORT_EVERY = 5000  # documents
GRACE = 1.0  # seconds after the job's deadline: its own timeout comes first

_COLLECTION = {
    "not": {
        "pattern": r"^(system\.|tandem_applied$)",
        "description": "must not be one of MongoDB's own, nor of Tandem's",
    }
}
_OWN = "must not be admin, config or local, which are MongoDB's own"
_DATABASE = {"not": {"type": "string", "pattern": r"^(admin|config|local)$", "description": _OWN}}

Query = Annotated[dict[str, Any], Field(description="a MongoDB query; Extended JSON")]
Extended = Annotated[Form, Field(description="the documents' form: canonical keeps every number's type")]


class _Place(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    connection: Annotated[str, Field(min_length=1, max_length=128, description="a name from the worker's settings")]
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
    projection: Annotated[dict[str, Any] | None, Field(description="the fields wanted, {name: 1}")] = None
    sort: Annotated[
        dict[str, Literal[1, -1] | dict[str, Any]] | None, Field(description="1 is ascending, -1 descending")
    ] = None
    limit: Annotated[int, Field(ge=1, le=(1 << 31) - 1)] | None = None
    extended_json: Extended = "relaxed"


class MongoFind(_Read):
    """What `mongo.find` takes."""


class MongoAggregate(_Place):
    """What `mongo.aggregate` takes."""

    pipeline: Annotated[list[dict[str, Any]], Field(max_length=operators.MAX_STAGES)]
    extended_json: Extended = "relaxed"


class MongoInsert(_Place):
    """What `mongo.insert` takes."""

    documents: Annotated[list[dict[str, Any]], Field(min_length=1)]


class MongoUpdate(_Place):
    """What `mongo.update` takes."""

    filter: Query
    update: Annotated[
        dict[str, Any] | list[dict[str, Any]], Field(description="operators such as $set, or a pipeline", min_length=1)
    ]
    many: Annotated[bool, Field(description="all that match, not just one")] = False
    upsert: Annotated[bool, Field(description="insert a document if none matches")] = False


class MongoDelete(_Place):
    """What `mongo.delete` takes."""

    filter: Query
    many: Annotated[bool, Field(description="all that match, not just one")] = False


class MongoExport(_Read):
    """What `mongo.export` takes."""

    format: Format
    compression: Annotated[Compression | None, Field(description="of the file; of Parquet, inside of it")] = None


class MongoImport(_Place):
    """What `mongo.import` takes."""

    source: FileRef
    format: Annotated[Format | None, Field(description="told by the file's name if not given, else ndjson")] = None
    compression: Annotated[Compression | None, Field(description="may be left out: the file's start says it")] = None


class MongoCount(TypedDict):
    """How many documents were given as output."""

    count: int


class MongoInserted(TypedDict):
    """How many documents are inserted, by this attempt or an earlier one."""

    inserted: int


class MongoUpdated(TypedDict):
    """How many documents the filter matched, were changed by it, and were inserted for want of a match."""

    matched: int
    modified: int
    upserted: int


class MongoDeleted(TypedDict):
    """How many documents were deleted."""

    deleted: int


class MongoExported(TypedDict):
    """The file, and how many documents it has."""

    file: FileRef
    count: int


class MongoImported(TypedDict):
    """How many documents are inserted, by any attempt, and how many could not be: the first ones are in the log."""

    inserted: int
    bad_count: int


@task(
    "mongo.find",
    timeout="10m",
    example={"connection": "demo", "collection": "orders", "filter": {"city": "Oslo"}, "sort": {"_id": 1}, "limit": 10},
)
async def find(job: Job, payload: MongoFind) -> MongoCount:
    """Find documents in MongoDB and stream them as Extended JSON."""
    async with _found(job, payload) as documents:
        return {"count": await _emit(job, documents, payload.extended_json)}


@task(
    "mongo.aggregate",
    timeout="10m",
    example={
        "connection": "demo",
        "collection": "orders",
        "pipeline": [{"$match": {"paid": True}}, {"$group": {"_id": "$city", "total": {"$sum": "$amount"}}}],
    },
)
async def aggregate(job: Job, payload: MongoAggregate) -> MongoCount:
    """Run an aggregation pipeline in MongoDB and stream what it makes as Extended JSON."""
    connection = job.mongo(payload.connection)
    pipeline = to_bson(payload.pipeline, "pipeline")
    operators.check_pipeline(pipeline, reach=connection.reach)
    async with connection.aggregate(_target(job, payload), pipeline) as documents:
        return {"count": await _emit(job, documents, payload.extended_json)}


@task(
    "mongo.insert",
    timeout="10m",
    example={
        "connection": "demo",
        "collection": "orders",
        "documents": [{"city": "Oslo", "amount": {"$numberDecimal": "9.90"}, "at": {"$date": "2026-01-31T12:00:00Z"}}],
    },
)
async def insert(job: Job, payload: MongoInsert) -> MongoInserted:
    """Insert documents into MongoDB, applied once.

    Documents without an `_id` get one that is derived from the job, so that another attempt inserts none twice. Those
    that the server refuses fail the job; the others are inserted.
    """
    entries = []
    for number, one in enumerate(payload.documents):
        document = _document(to_bson(one, f"documents/{number}"), f"documents/{number}")
        operators.check_document(document, f"documents/{number}")
        entries.append(Entry(number, document, "", 0))
    inserts = Inserts(job.mongo(payload.connection), _target(job, payload), job.id)
    rejected = await inserts.insert(entries)
    await job.progress(inserts.inserted, len(entries))
    if rejected:
        first = rejected[0]
        message = (
            f"{len(rejected)} of {len(entries)} documents were refused, the others are inserted;"
            f" documents/{first.place}: {first.reason}"
        )
        raise TaskError("duplicate_key" if first.duplicate else "mongo_error", message, retryable=False)
    return {"inserted": inserts.inserted}


@task(
    "mongo.update",
    timeout="10m",
    example={
        "connection": "demo",
        "collection": "orders",
        "filter": {"city": "Oslo"},
        "update": {"$set": {"paid": True}},
    },
)
async def update(job: Job, payload: MongoUpdate) -> MongoUpdated:
    """Update one or many documents in MongoDB, applied once where the server has transactions."""
    filter, change = to_bson(payload.filter, "filter"), to_bson(payload.update, "update")
    operators.check_filter(_document(filter, "filter"))
    operators.check_update(change)
    connection = job.mongo(payload.connection)
    done = await connection.update(
        _target(job, payload), job.id, filter, change, many=payload.many, upsert=payload.upsert
    )
    return MongoUpdated(matched=done["matched"], modified=done["modified"], upserted=done["upserted"])


@task(
    "mongo.delete",
    timeout="10m",
    example={"connection": "demo", "collection": "orders", "filter": {"paid": False}, "many": True},
)
async def delete(job: Job, payload: MongoDelete) -> MongoDeleted:
    """Delete one or many documents in MongoDB, applied once where the server has transactions."""
    filter = _document(to_bson(payload.filter, "filter"), "filter")
    operators.check_filter(filter)
    connection = job.mongo(payload.connection)
    done = await connection.delete(_target(job, payload), job.id, filter, many=payload.many)
    return {"deleted": done["deleted"]}


@task(
    "mongo.export",
    timeout="10m",
    example={"connection": "demo", "collection": "orders", "filter": {"city": "Oslo"}, "format": "ndjson"},
)
async def export(job: Job, payload: MongoExport) -> MongoExported:
    """Write the documents that a query finds to a file: NDJSON or a JSON array of Extended JSON, CSV, or Parquet.

    CSV and Parquet have the fields of all documents as columns; ids, decimals and what is mixed in them are text.
    """
    wanted = [name for name, value in (payload.projection or {}).items() if value and "." not in name]
    if wanted and "_id" not in (payload.projection or {}):
        wanted.insert(0, "_id")
    count = 0

    async def pieces(documents: AsyncIterator[RawBSONDocument], dump: Dump) -> AsyncIterator[bytes]:
        nonlocal count
        async for portion in _portions(documents):
            if piece := await asyncio.to_thread(dump.write, portion):
                yield piece
            count += len(portion)
            await job.progress(count)
        rest = dump.end()
        while piece := await asyncio.to_thread(_next, rest):
            yield piece

    stem = re.sub(r"[^\w.-]+", "_", payload.collection).strip(".")[:60] or "documents"
    name, kind = file_name(stem, payload.format, payload.compression)
    with open_dump(payload.format, payload.compression, payload.extended_json, wanted) as dump:
        async with _found(job, payload, raw=True) as documents:
            file = await job.files.write(name, pieces(documents, dump), kind)
    await job.progress(count, count)
    return {"file": file, "count": count}


def _next(pieces: Iterator[bytes]) -> bytes:
    """The next one that is not empty; none at the end."""
    return next(filter(None, pieces), b"")


async def _portions(documents: AsyncIterator[RawBSONDocument]) -> AsyncIterator[list[bytes]]:
    waiting: list[bytes] = []
    size = 0
    async for document in documents:
        waiting.append(bytes(document.raw))
        size += len(document.raw)
        if size >= PORTION:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting


@task(
    "mongo.import",
    timeout="10m",
    example={"connection": "demo", "collection": "orders", "source": {"file": "01JC8XW3T4Z5PC3V8M2G7QK9RN4HDA"}},
)
async def import_file(job: Job, payload: MongoImport) -> MongoImported:
    """Insert the documents of a file into MongoDB, applied once: NDJSON, a JSON array, CSV, Parquet, also compressed.

    Documents that cannot be read, or that the server refuses, are counted and logged, and the others inserted.
    """
    source = await job.files.stat(payload.source)
    stored = Stored(job, source)
    found = entries(stored, payload.format or format_of(source) or "ndjson", payload.compression)

    def refuse(number: int, reason: str) -> None:
        job.log.warning("not imported", number=number, reason=reason)

    inserts = Inserts(job.mongo(payload.connection), _target(job, payload), job.id, refuse)
    while batch := await asyncio.to_thread(next_batch, found):
        await inserts.add(batch)
        await job.progress(stored.read, source.size)
    await job.progress(source.size or 0, source.size)
    return {"inserted": inserts.inserted, "bad_count": inserts.bad}


def _target(job: Job, place: _Place) -> Target:
    operators.check_collection(place.collection)
    until = time.monotonic() + max(0.0, job.deadline - time.time()) + GRACE
    return Target(place.database, place.collection, until)


def _found(job: Job, payload: _Read, *, raw: bool = False) -> Any:
    filter = _document(to_bson(payload.filter, "filter"), "filter")
    operators.check_filter(filter)
    projection = (
        None if payload.projection is None else _document(to_bson(payload.projection, "projection"), "projection")
    )
    operators.check_projection(projection or {})
    sort = payload.sort or {}
    for name, direction in sort.items():
        if isinstance(direction, dict) and direction != {"$meta": "textScore"}:
            raise TaskError("forbidden_operator", f"sort/{name[:100]} is 1, -1 or textScore", retryable=False)
    return job.mongo(payload.connection).find(
        _target(job, payload),
        filter,
        projection=projection,
        sort=list(sort.items()),
        limit=payload.limit or 0,
        raw=raw,
    )


async def _emit(job: Job, documents: AsyncIterator[dict[str, Any]], form: Form) -> int:
    count = 0
    async for document in documents:
        await job.emit(msgspec.Raw(to_json(document, form)))
        count += 1
        if count % REPORT_EVERY == 0:
            await job.progress(count)
    await job.progress(count, count)
    return count


def _document(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TaskError("invalid_document", f"{place} is a single value, not an object", retryable=False)
    return value
