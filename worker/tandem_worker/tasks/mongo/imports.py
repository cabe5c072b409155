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
from tandem_worker.errors import TaskError
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.tables.batches import batched
from tandem_worker.tables.names import format_of
from tandem_worker.tables.reader import read_objects
from tandem_worker.tables.stored import StoredBytes
from tandem_worker.tables.table import TableFormat
from tandem_worker.task import task
from tandem_worker.tasks.mongo.inserts import (
    BATCH_BYTES,
    BATCH_DOCUMENTS,
    Inserts,
    NumberedDocument,
)
from tandem_worker.tasks.mongo.payloads import MongoTarget, collection_ref, to_document
from tandem_worker.tasks.payload import FILE_EXAMPLE, InputCompression


class MongoImport(MongoTarget):
    """The payload of `mongo.import`."""

    source: FileRef
    format: Annotated[
        TableFormat | None, Field(description="default: by the file's name, or else ndjson")
    ] = None
    compression: InputCompression = None


class MongoImported(TypedDict):
    """Documents inserted by any attempt, and bad ones, of which the first 100 are logged."""

    inserted: int
    bad_count: int


@task(
    "mongo.import",
    timeout="10m",
    example={
        "connection": "demo",
        "collection": "orders",
        "source": FILE_EXAMPLE,
    },
)
async def import_file(job: Job, payload: MongoImport) -> MongoImported:
    """Insert the documents of a file into MongoDB, applied once.

    The file is NDJSON, a JSON array, CSV or Parquet, and may be compressed. Documents that cannot
    be read, or that the server refuses, are counted and logged; all others are inserted.
    """
    source = await job.files.stat(payload.source)
    stored = StoredBytes(job, source)
    format = payload.format or format_of(source) or "ndjson"
    documents = read_documents(stored, format, payload.compression)

    def report(number: int, reason: str) -> None:
        job.log.warning("not imported", number=number, reason=reason)

    inserts = Inserts(job.mongo(payload.connection), collection_ref(job, payload), job.id, report)
    batches = batched(documents, BATCH_DOCUMENTS, BATCH_BYTES)
    batch: list[NumberedDocument]
    while batch := await asyncio.to_thread(next, batches, []):
        await inserts.add(batch)
        await job.progress(stored.bytes_read, source.size)
    await job.progress(source.size or 0, source.size)
    return {"inserted": inserts.inserted, "bad_count": inserts.bad}


def read_documents(
    pieces: Iterable[bytes], format: TableFormat, compression: Compression | None
) -> Iterator[NumberedDocument]:
    """The documents of a file; read them in a thread. Raises Permanent `invalid_file`."""
    for row in read_objects(pieces, format, compression):
        document, problem = None, row.problem
        if not problem:
            try:
                fields = _bson_values(row.value) if format == "parquet" else row.value
                document = to_document(fields, "document")
                check_document(document)
            except TaskError as error:
                document, problem = None, error.message
            except (ValueError, RecursionError, DecimalException) as error:
                problem = str(error)
        yield NumberedDocument(row.line, document, problem, row.size)


def _bson_values(value: Any) -> Any:
    """A Parquet value as one that BSON can hold."""
    match value:
        case dict():
            return {str(name): _bson_values(below) for name, below in value.items()}
        case list() | tuple():
            return [_bson_values(below) for below in value]
        case datetime():
            return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        case date():
            return datetime.combine(value, clock_time(), UTC)
        case Decimal():
            return Decimal128(value)
        case clock_time() | timedelta():
            return str(value)
    return value
