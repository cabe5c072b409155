"""`mongo.insert`, `mongo.update` and `mongo.delete`."""

from typing import Annotated, Any, cast

from pydantic import Field
from typing_extensions import TypedDict

from tandem_worker.connectors.mongo import allowlist
from tandem_worker.connectors.mongo.extended_json import to_bson
from tandem_worker.errors import Permanent
from tandem_worker.jobs.job import Job
from tandem_worker.task import task
from tandem_worker.tasks.mongo.inserts import Inserts, NumberedDocument
from tandem_worker.tasks.mongo.payloads import MongoQuery, MongoTarget, collection_ref, to_document


class MongoInsert(MongoTarget):
    """The payload of `mongo.insert`."""

    documents: Annotated[list[dict[str, Any]], Field(min_length=1)]


class MongoUpdate(MongoTarget):
    """The payload of `mongo.update`."""

    filter: MongoQuery
    update: Annotated[
        dict[str, Any] | list[dict[str, Any]],
        Field(description="operators such as $set, or a pipeline", min_length=1),
    ]
    many: Annotated[bool, Field(description="update all matches instead of one")] = False
    upsert: Annotated[bool, Field(description="insert a document if nothing matches")] = False


class MongoDelete(MongoTarget):
    """The payload of `mongo.delete`."""

    filter: MongoQuery
    many: Annotated[bool, Field(description="delete all matches instead of one")] = False


class MongoInserted(TypedDict):
    """The number of documents inserted, by this attempt or an earlier one."""

    inserted: int


class MongoUpdated(TypedDict):
    """The numbers of documents that matched, were changed, and were inserted by `upsert`."""

    matched: int
    modified: int
    upserted: int


class MongoDeleted(TypedDict):
    """The number of documents deleted."""

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

    A document without `_id` gets one that is derived from the job, so that another attempt does not
    insert it again. Documents that the server refuses fail the job; all others are inserted.
    """
    documents = []
    for number, given in enumerate(payload.documents):
        document = to_document(given, f"documents/{number}")
        allowlist.check_document(document, f"documents/{number}")
        documents.append(NumberedDocument(number, document))
    inserts = Inserts(
        job.mongo(payload.connection), collection_ref(job, payload), job.id, lambda *_: None
    )
    rejected = await inserts.insert(documents)
    await job.progress(inserts.inserted, len(documents))
    if rejected:
        first = rejected[0]
        message = (
            f"{len(rejected)} of {len(documents)} documents were refused, the others are inserted;"
            f" documents/{first.position}: {first.reason}"
        )
        type = "duplicate_key" if first.duplicate else "mongo_error"
        raise Permanent(type, message)
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
    """Update one or many documents in MongoDB, applied once if the server has transactions."""
    filter, change = to_document(payload.filter, "filter"), to_bson(payload.update, "update")
    allowlist.check_filter(filter)
    allowlist.check_update(change)
    connection = job.mongo(payload.connection)
    done = await connection.update(
        collection_ref(job, payload),
        job.id,
        filter,
        change,
        many=payload.many,
        upsert=payload.upsert,
    )
    return cast("MongoUpdated", done)


@task(
    "mongo.delete",
    timeout="10m",
    example={"connection": "demo", "collection": "orders", "filter": {"paid": False}, "many": True},
)
async def delete(job: Job, payload: MongoDelete) -> MongoDeleted:
    """Delete one or many documents in MongoDB, applied once if the server has transactions."""
    filter = to_document(payload.filter, "filter")
    allowlist.check_filter(filter)
    connection = job.mongo(payload.connection)
    done = await connection.delete(collection_ref(job, payload), job.id, filter, many=payload.many)
    return cast("MongoDeleted", done)
