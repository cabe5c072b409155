"""`mongo.import`."""

import asyncio
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from decimal import Decimal, DecimalException
from typing import Annotated, Any

from bson import Decimal128
from pydantic import Field
from typing_extensions import TypedDict

from tandem_worker.archives.compression import Compression
from tandem_worker.connectors.mongo.allowlist import check_document
from tandem_worker.connectors.mongo.extended_json import invalid, to_bson
from tandem_worker.errors import TaskError
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.tables.names import format_of
from tandem_worker.tables.reader import read_objects
from tandem_worker.tables.stored import Stored
from tandem_worker.tables.table import TableFormat
from tandem_worker.task import task
from tandem_worker.tasks.mongo.inserts import Entry, Inserts, next_batch
from tandem_worker.tasks.mongo.payloads import _Place, _target


class MongoImport(_Place):
    """What `mongo.import` takes."""

    source: FileRef
    format: Annotated[
        TableFormat | None, Field(description="told by the file's name if not given, else ndjson")
    ] = None
    compression: Annotated[
        Compression | None, Field(description="may be left out: the file's start says it")
    ] = None


class MongoImported(TypedDict):
    """How many documents are inserted, by any attempt, and how many could not be: the first ones are in the log."""

    inserted: int
    bad_count: int


@task(
    "mongo.import",
    timeout="10m",
    example={
        "connection": "demo",
        "collection": "orders",
        "source": {"file": "01JC8XW3T4Z5PC3V8M2G7QK9RN4HDA"},
    },
)
async def import_file(job: Job, payload: MongoImport) -> MongoImported:
    """Insert the documents of a file into MongoDB, applied once: NDJSON, a JSON array, CSV, Parquet, also compressed.

    Documents that cannot be read, or that the server refuses, are counted and logged, and the
    others inserted.
    """
    source = await job.files.stat(payload.source)
    stored = Stored(job, source)
    found = entries(stored, payload.format or format_of(source) or "ndjson", payload.compression)

    def refuse(number: int, reason: str) -> None:
        job.log.warning("not imported", number=number, reason=reason)

    inserts = Inserts(job.mongo(payload.connection), _target(job, payload), job.id, refuse)
    while batch := await asyncio.to_thread(next_batch, found):
        await inserts.add(batch)
        await job.progress(stored.bytes_read, source.size)
    await job.progress(source.size or 0, source.size)
    return {"inserted": inserts.inserted, "bad_count": inserts.bad}


def entries(
    pieces: Iterable[bytes], format: TableFormat, compression: Compression | None
) -> Iterator[Entry]:
    """The documents of a file, read in a thread. Raises Permanent for a file that is not what it is said to be."""
    for row in read_objects(pieces, format, compression):
        document, problem = None, row.problem
        if not problem:
            try:
                document = _document(row.value, parquet=format == "parquet")
            except TaskError as error:
                problem = error.message
            except (ValueError, RecursionError, DecimalException) as error:
                problem = str(error)
        yield Entry(row.line, document, problem, row.size)


def _document(found: dict[str, Any], *, parquet: bool) -> dict[str, Any]:
    document = to_bson(_stored(found) if parquet else found, "document")
    if not isinstance(document, dict):
        raise invalid("document", "is a single value, not an object")
    check_document(document)
    return document


def _stored(value: Any) -> Any:
    """A value of Parquet as one that BSON has."""
    match value:
        case dict():
            return {str(name): _stored(below) for name, below in value.items()}
        case list() | tuple():
            return [_stored(below) for below in value]
        case datetime():
            return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        case date():
            return datetime.combine(value, clock_time(), UTC)
        case Decimal():
            return Decimal128(value)
        case clock_time() | timedelta():
            return str(value)
    return value
