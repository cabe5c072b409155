"""`mongo.find` and `mongo.aggregate`."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from pydantic import Field
from typing_extensions import TypedDict

from tandem_worker.connectors.mongo import allowlist
from tandem_worker.connectors.mongo.extended_json import Form, to_bson, to_json
from tandem_worker.jobs.job import Job
from tandem_worker.task import task
from tandem_worker.tasks.mongo.payloads import (
    ExtendedJson,
    MongoRead,
    MongoTarget,
    collection_ref,
    find_documents,
)

REPORT_DOCUMENTS = 5000  # documents between two progress reports


class MongoFind(MongoRead):
    """The payload of `mongo.find`."""


class MongoAggregate(MongoTarget):
    """The payload of `mongo.aggregate`."""

    pipeline: Annotated[list[dict[str, Any]], Field(max_length=allowlist.MAX_STAGES)]
    extended_json: ExtendedJson = "relaxed"


class MongoCount(TypedDict):
    """The number of documents in the job's output."""

    count: int


@task(
    "mongo.find",
    timeout="10m",
    example={
        "connection": "demo",
        "collection": "orders",
        "filter": {"city": "Oslo"},
        "sort": {"_id": 1},
        "limit": 10,
    },
)
async def find(job: Job, payload: MongoFind) -> MongoCount:
    """Find documents in MongoDB and stream them as Extended JSON."""
    async with find_documents(job, payload) as documents:
        return {"count": await _emit(job, documents, payload.extended_json)}


@task(
    "mongo.aggregate",
    timeout="10m",
    example={
        "connection": "demo",
        "collection": "orders",
        "pipeline": [
            {"$match": {"paid": True}},
            {"$group": {"_id": "$city", "total": {"$sum": "$amount"}}},
        ],
    },
)
async def aggregate(job: Job, payload: MongoAggregate) -> MongoCount:
    """Run an aggregation pipeline in MongoDB and stream its documents as Extended JSON."""
    connection = job.mongo(payload.connection)
    pipeline = to_bson(payload.pipeline, "pipeline")
    allowlist.check_pipeline(pipeline, readable=connection.readable)
    async with connection.aggregate(collection_ref(job, payload), pipeline) as documents:
        return {"count": await _emit(job, documents, payload.extended_json)}


async def _emit(job: Job, documents: AsyncIterator[dict[str, Any]], form: Form) -> int:
    count = 0
    async for document in documents:
        await job.emit(msgspec.Raw(to_json(document, form)))
        count += 1
        if count % REPORT_DOCUMENTS == 0:
            await job.progress(count)
    await job.progress(count, count)
    return count
