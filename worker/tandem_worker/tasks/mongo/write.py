"""`mongo.insert`, `mongo.update` and `mongo.delete`."""

from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from tandem_worker.connectors.mongo import allowlist
from tandem_worker.connectors.mongo.extended_json import to_bson
from tandem_worker.errors import TaskError
from tandem_worker.jobs.job import Job
from tandem_worker.task import task
from tandem_worker.tasks.mongo.inserts import Entry, Inserts
from tandem_worker.tasks.mongo.payloads import Query, _document, _Place, _target


class MongoInsert(_Place):
    """What `mongo.insert` takes."""

    documents: Annotated[list[dict[str, Any]], Field(min_length=1)]


class MongoUpdate(_Place):
    """What `mongo.update` takes."""

    filter: Query
    update: Annotated[
        dict[str, Any] | list[dict[str, Any]],
        Field(description="operators such as $set, or a pipeline", min_length=1),
    ]
    many: Annotated[bool, Field(description="all that match, not just one")] = False
    upsert: Annotated[bool, Field(description="insert a document if none matches")] = False


class MongoDelete(_Place):
    """What `mongo.delete` takes."""

    filter: Query
    many: Annotated[bool, Field(description="all that match, not just one")] = False


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


@task(
    "mongo.insert",
    timeout="10m",
    example={
        "connection": "demo",
        "collection": "orders",
        "documents": [
            {
                "city": "Oslo",
                "amount": {"$numberDecimal": "9.90"},
                "at": {"$date": "2026-01-31T12:00:00Z"},
            }
        ],
    },
)
async def insert(job: Job, payload: MongoInsert) -> MongoInserted:
    """Insert documents into MongoDB, applied once.

    Documents without an `_id` get one that is derived from the job, so that another attempt inserts
    none twice. Those that the server refuses fail the job; the others are inserted.
    """
    entries = []
    for number, one in enumerate(payload.documents):
        document = _document(to_bson(one, f"documents/{number}"), f"documents/{number}")
        allowlist.check_document(document, f"documents/{number}")
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
        raise TaskError(
            "duplicate_key" if first.duplicate else "mongo_error", message, retryable=False
        )
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
    allowlist.check_filter(_document(filter, "filter"))
    allowlist.check_update(change)
    connection = job.mongo(payload.connection)
    done = await connection.update(
        _target(job, payload), job.id, filter, change, many=payload.many, upsert=payload.upsert
    )
    return MongoUpdated(
        matched=done["matched"], modified=done["modified"], upserted=done["upserted"]
    )


@task(
    "mongo.delete",
    timeout="10m",
    example={"connection": "demo", "collection": "orders", "filter": {"paid": False}, "many": True},
)
async def delete(job: Job, payload: MongoDelete) -> MongoDeleted:
    """Delete one or many documents in MongoDB, applied once where the server has transactions."""
    filter = _document(to_bson(payload.filter, "filter"), "filter")
    allowlist.check_filter(filter)
    connection = job.mongo(payload.connection)
    done = await connection.delete(_target(job, payload), job.id, filter, many=payload.many)
    return {"deleted": done["deleted"]}
