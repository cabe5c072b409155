"""Documents in files, both ways: NDJSON (one Extended JSON document a line), a JSON array, CSV, Parquet.

CSV and Parquet have the keys of all documents as columns. Numbers, booleans, dates and bytes have
types of their own in Parquet where all values of a column have the same; ids, decimals and (in CSV)
dates are plain text, and what else is no text is Extended JSON. What is read from CSV is text, an
empty value no field.
"""

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, Protocol

import bson
import msgspec
from bson.raw_bson import RawBSONDocument
from pydantic import Field
from typing_extensions import TypedDict

from tandem_worker.archives.compression import Compression, Deflating
from tandem_worker.connectors.mongo.extended_json import DECODING, Form, plain, to_json
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.tables.names import output_name
from tandem_worker.tables.schema import ObjectColumns
from tandem_worker.tables.table import ColumnBatch, Columns, TableFormat
from tandem_worker.tables.writers import Buffer, JsonWriter, open_writer
from tandem_worker.task import task
from tandem_worker.tasks.mongo.payloads import _found, _Read

PORTION = 1 << 20  # bytes of documents, as BSON, that are written at once
_TEXTUAL = frozenset({"$oid", "$numberDecimal", "$numberLong", "$numberInt", "$numberDouble"})


class Dump(Protocol):
    """Makes a file of documents, portion by portion. It computes: call it in a thread."""

    def write(self, documents: Sequence[bytes]) -> bytes:
        """Add documents, each as BSON; the bytes of the file that are ready by then."""

    def end(self) -> Iterator[bytes]:
        """The rest of the file, in pieces."""


@contextmanager
def open_dump(
    format: TableFormat, compression: Compression | None, form: Form, fields: Sequence[str] = ()
) -> Iterator[Dump]:
    """The dump of a format. `fields` are columns of CSV and Parquet that are there in any case, and come first."""
    if format in ("ndjson", "json"):
        yield _Texts(format, compression, form)
        return
    # It has no name, so nothing of it is left however this process ends.
    with tempfile.TemporaryFile() as spool:
        yield _Table(spool, format, compression, form, fields)


class _Texts:
    def __init__(self, format: TableFormat, compression: Compression | None, form: Form) -> None:
        self._form = form
        self._buffer = Buffer()
        self._output = JsonWriter(Deflating(self._buffer, compression), array=format == "json")

    def write(self, documents: Sequence[bytes]) -> bytes:
        self._output.add([to_json(_read(one), self._form) for one in documents])
        return self._buffer.take()

    def end(self) -> Iterator[bytes]:
        self._output.end()
        yield self._buffer.take()


class _Table:
    """What has columns must know them all first: the documents wait in a file until the last one was seen."""

    def __init__(
        self,
        spool: Any,
        format: TableFormat,
        compression: Compression | None,
        form: Form,
        fields: Sequence[str],
    ) -> None:
        self._spool = spool
        self._format, self._compression, self._form = format, compression, form
        self._keys = ObjectColumns(fields)

    def write(self, documents: Sequence[bytes]) -> bytes:
        for one in documents:
            self._keys.add(_read(one))
            self._spool.write(one)
        return b""

    def end(self) -> Iterator[bytes]:
        columns = Columns(self._keys.names, self._keys.types, partial(_text, form=self._form))
        buffer = Buffer()
        output = open_writer(buffer, self._format, self._compression, columns)
        for batch in self._batches():
            output.write(batch)
            yield buffer.take()
        output.end()
        yield buffer.take()

    def _batches(self) -> Iterator[ColumnBatch]:
        waiting: list[Any] = []
        start = 0
        self._spool.seek(0)
        for document in bson.decode_file_iter(self._spool, DECODING):
            waiting.append(document)
            if self._spool.tell() - start >= PORTION:
                yield self._keys.batch(waiting)
                waiting, start = [], self._spool.tell()
        if waiting:
            yield self._keys.batch(waiting)


def _read(document: bytes) -> dict[str, Any]:
    return bson.decode(document, DECODING)


def _text(value: Any, form: Form) -> str:
    made = plain(value, form)
    if isinstance(made, dict) and len(made) == 1:
        ((key, text),) = made.items()
        if key in _TEXTUAL or (key == "$date" and isinstance(text, str)):
            return str(text)
    return made if isinstance(made, str) else msgspec.json.encode(made).decode()


# ------------------------------------------------------------------------------------------ reading


class MongoExport(_Read):
    """What `mongo.export` takes."""

    format: TableFormat
    compression: Annotated[
        Compression | None, Field(description="of the file; of Parquet, inside of it")
    ] = None


class MongoExported(TypedDict):
    """The file, and how many documents it has."""

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
    """Write the documents that a query finds to a file: NDJSON or a JSON array of Extended JSON, CSV, or Parquet.

    CSV and Parquet have the fields of all documents as columns; ids, decimals and what is mixed in
    them are text.
    """
    wanted = [
        name for name, value in (payload.projection or {}).items() if value and "." not in name
    ]
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
    name, kind = output_name(stem, payload.format, payload.compression)
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
