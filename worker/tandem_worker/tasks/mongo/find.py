"""MongoDB: `mongo.find`, `aggregate`, `insert`, `update`, `delete`, `export`, `import`. Documents are Extended JSON."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from pydantic import Field
from typing_extensions import TypedDict

from tandem_worker.connectors.mongo import allowlist
from tandem_worker.connectors.mongo.extended_json import Form, to_bson, to_json
from tandem_worker.jobs.job import Job
from tandem_worker.task import task
from tandem_worker.tasks.mongo.payloads import Extended, _found, _Place, _Read, _target

REPORT_EVERY = 5000  # documents


class MongoFind(_Read):
    """What `mongo.find` takes."""


class MongoAggregate(_Place):
    """What `mongo.aggregate` takes."""

    pipeline: Annotated[list[dict[str, Any]], Field(max_length=allowlist.MAX_STAGES)]
    extended_json: Extended = "relaxed"


class MongoCount(TypedDict):
    """How many documents were given as output."""

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
    async with _found(job, payload) as documents:
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
    """Run an aggregation pipeline in MongoDB and stream what it makes as Extended JSON."""
    connection = job.mongo(payload.connection)
    pipeline = to_bson(payload.pipeline, "pipeline")
    allowlist.check_pipeline(pipeline, reach=connection.reach)
    async with connection.aggregate(_target(job, payload), pipeline) as documents:
        return {"count": await _emit(job, documents, payload.extended_json)}


async def _emit(job: Job, documents: AsyncIterator[dict[str, Any]], form: Form) -> int:
    count = 0
    async for document in documents:
        await job.emit(msgspec.Raw(to_json(document, form)))
        count += 1
        if count % REPORT_EVERY == 0:
            await job.progress(count)
    await job.progress(count, count)
    return count
