"""`mongo.export`: the documents of a query as NDJSON, a JSON array, CSV or Parquet.

NDJSON and JSON hold Extended JSON. CSV and Parquet have the keys of all documents as columns.
Parquet has native types for numbers, booleans, dates and bytes if all values of a column share one.
Ids, decimals and (in CSV) dates are plain text; all other values are Extended JSON.
"""

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import bson
import msgspec
from bson.raw_bson import RawBSONDocument
from typing_extensions import TypedDict

from tandem_worker.archives.compression import Deflating
from tandem_worker.connectors.mongo.extended_json import DECODING, Form, plain, to_json
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.tables.names import output_name
from tandem_worker.tables.schema import ObjectColumns
from tandem_worker.tables.table import ColumnBatch, Columns, TableFormat
from tandem_worker.tables.writers import Buffer, JsonWriter, open_writer
from tandem_worker.task import task
from tandem_worker.tasks.mongo.payloads import MongoRead, find_documents
from tandem_worker.tasks.payload import OutputCompression

CHUNK_BYTES = 1 << 20  # of BSON documents, written at once
_PLAIN_TEXT = frozenset({"$oid", "$numberDecimal", "$numberLong", "$numberInt", "$numberDouble"})


class MongoExport(MongoRead):
    """The payload of `mongo.export`."""

    format: TableFormat
    compression: OutputCompression = None


class MongoExported(TypedDict):
    """The file, and the number of documents in it."""

    file: FileRef
    count: int


@task(
    "mongo.export",
    timeout="10m",
    example={
        "connection": "demo",
        "collection": "orders",
        "filter": {"city": "Oslo"},
        "format": "ndjson",
    },
)
async def export(job: Job, payload: MongoExport) -> MongoExported:
    """Write the documents of a query to a file: NDJSON, a JSON array, CSV or Parquet.

    NDJSON and JSON hold Extended JSON. CSV and Parquet have the fields of all documents as columns;
    ids, decimals and columns of mixed values are text.
    """
    count = 0

    async def pieces(
        documents: AsyncIterator[RawBSONDocument], encoder: "_JsonEncoder | _TableEncoder"
    ) -> AsyncIterator[bytes]:
        nonlocal count
        async for chunk in _chunks(documents):
            if piece := await asyncio.to_thread(encoder.write, chunk):
                yield piece
            count += len(chunk)
            await job.progress(count)
        rest = filter(None, encoder.end())
        while piece := await asyncio.to_thread(next, rest, b""):
            yield piece

    stem = re.sub(r"[^\w.-]+", "_", payload.collection).strip(".")[:60] or "documents"
    name, content_type = output_name(stem, payload.format, payload.compression)
    with _open_encoder(payload) as encoder:
        async with find_documents(job, payload, raw=True) as documents:
            file = await job.files.write(name, pieces(documents, encoder), content_type)
    await job.progress(count, count)
    return {"file": file, "count": count}


async def _chunks(documents: AsyncIterator[RawBSONDocument]) -> AsyncIterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    async for document in documents:
        chunk.append(bytes(document.raw))
        size += len(document.raw)
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


@contextmanager
def _open_encoder(payload: MongoExport) -> Iterator["_JsonEncoder | _TableEncoder"]:
    if payload.format in ("ndjson", "json"):
        yield _JsonEncoder(payload)
        return
    # A file without a name: the system removes it however this process ends.
    with tempfile.TemporaryFile() as spool:
        yield _TableEncoder(spool, payload)


class _JsonEncoder:
    """Makes NDJSON or a JSON array of BSON documents. It computes: call it in a thread."""

    def __init__(self, payload: MongoExport) -> None:
        self._form = payload.extended_json
        self._buffer = Buffer()
        out = Deflating(self._buffer, payload.compression)
        self._writer = JsonWriter(out, array=payload.format == "json")

    def write(self, documents: Sequence[bytes]) -> bytes:
        """Append documents; returns the bytes of the file that are ready."""
        self._writer.add([to_json(_decode(document), self._form) for document in documents])
        return self._buffer.take()

    def end(self) -> Iterator[bytes]:
        """The rest of the file, in pieces."""
        self._writer.end()
        yield self._buffer.take()


class _TableEncoder:
    """Documents wait in a file until the last one is known, and with it all columns."""

    def __init__(self, spool: Any, payload: MongoExport) -> None:
        self._spool, self._payload = spool, payload
        self._columns = ObjectColumns(_projected(payload.projection or {}))

    def write(self, documents: Sequence[bytes]) -> bytes:
        self._columns.add(list(map(_decode, documents)))
        self._spool.writelines(documents)
        return b""

    def end(self) -> Iterator[bytes]:
        found, payload = self._columns, self._payload
        columns = Columns(found.names, found.types, partial(_text, form=payload.extended_json))
        buffer = Buffer()
        writer = open_writer(buffer, payload.format, payload.compression, columns)
        for batch in self._batches():
            writer.write(batch)
            yield buffer.take()
        writer.end()
        yield buffer.take()

    def _batches(self) -> Iterator[ColumnBatch]:
        waiting: list[Any] = []
        start = 0
        self._spool.seek(0)
        for document in bson.decode_file_iter(self._spool, DECODING):
            waiting.append(document)
            if self._spool.tell() - start >= CHUNK_BYTES:
                yield self._columns.batch(waiting)
                waiting, start = [], self._spool.tell()
        if waiting:
            yield self._columns.batch(waiting)


def _projected(projection: dict[str, Any]) -> list[str]:
    """The columns that a projection asks for: they come first, and exist without any document."""
    names = [name for name, value in projection.items() if value and "." not in name]
    return ["_id", *names] if names and "_id" not in projection else names


def _decode(document: bytes) -> dict[str, Any]:
    return bson.decode(document, DECODING)


def _text(value: Any, form: Form) -> str:
    made = plain(value, form)
    if isinstance(made, dict) and len(made) == 1:
        ((key, text),) = made.items()
        if key in _PLAIN_TEXT or (key == "$date" and isinstance(text, str)):
            return str(text)
    return made if isinstance(made, str) else msgspec.json.encode(made).decode()
