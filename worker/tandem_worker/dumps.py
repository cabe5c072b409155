"""Documents in files, both ways: NDJSON (one Extended JSON document a line), a JSON array, CSV, Parquet.

CSV and Parquet have the keys of all documents as columns. Numbers, booleans, dates and bytes have types of their own in
Parquet where all values of a column have the same; ids, decimals and (in CSV) dates are plain text, and what else is no
text is Extended JSON. What is read from CSV is text, an empty value no field.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, DecimalException
from functools import partial
from typing import Any, NamedTuple, Protocol

import bson
import msgspec
from bson import Decimal128

from tandem_worker.columns import Keys
from tandem_worker.compression import Compression, Deflating
from tandem_worker.documents import DECODING, Form, invalid, plain, to_bson, to_json
from tandem_worker.errors import TaskError
from tandem_worker.formats import Batch, Buffer, Columns, Format, JsonOutput, open_output
from tandem_worker.operators import check_document
from tandem_worker.records import items

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
    format: Format, compression: Compression | None, form: Form, fields: Sequence[str] = ()
) -> Iterator[Dump]:
    """The dump of a format. `fields` are columns of CSV and Parquet that are there in any case, and come first."""
    if format in ("ndjson", "json"):
        yield _Texts(format, compression, form)
        return
    # It has no name, so nothing of it is left however this process ends.
    with tempfile.TemporaryFile() as spool:
        yield _Table(spool, format, compression, form, fields)


class _Texts:
    def __init__(self, format: Format, compression: Compression | None, form: Form) -> None:
        self._form = form
        self._buffer = Buffer()
        self._output = JsonOutput(Deflating(self._buffer, compression), array=format == "json")

    def write(self, documents: Sequence[bytes]) -> bytes:
        self._output.add([to_json(_read(one), self._form) for one in documents])
        return self._buffer.take()

    def end(self) -> Iterator[bytes]:
        self._output.end()
        yield self._buffer.take()


class _Table:
    """What has columns must know them all first: the documents wait in a file until the last one was seen."""

    def __init__(
        self, spool: Any, format: Format, compression: Compression | None, form: Form, fields: Sequence[str]
    ) -> None:
        self._spool = spool
        self._format, self._compression, self._form = format, compression, form
        self._keys = Keys(fields)

    def write(self, documents: Sequence[bytes]) -> bytes:
        for one in documents:
            self._keys.see(_read(one))
            self._spool.write(one)
        return b""

    def end(self) -> Iterator[bytes]:
        columns = Columns(self._keys.names, self._keys.types, partial(_text, form=self._form))
        buffer = Buffer()
        output = open_output(buffer, self._format, self._compression, columns)
        for batch in self._batches():
            output.write(batch)
            yield buffer.take()
        output.end()
        yield buffer.take()

    def _batches(self) -> Iterator[Batch]:
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


# ------------------------------------------------------------------------------------------------------------- reading


class Entry(NamedTuple):
    """One document of a file, or what is wrong with it; `number` counts lines (rows, elements of an array) from 1."""

    number: int
    document: dict[str, Any] | None
    problem: str
    size: int  # bytes in the file, roughly


def entries(pieces: Iterable[bytes], format: Format, compression: Compression | None) -> Iterator[Entry]:
    """The documents of a file, read in a thread. Raises Permanent for a file that is not what it is said to be."""
    for number, found, problem, size in items(pieces, format, compression):
        if found is None:
            yield Entry(number, None, problem, size)
            continue
        try:
            yield Entry(number, _document(found, parquet=format == "parquet"), "", size)
        except TaskError as error:
            yield Entry(number, None, error.message, size)
        except (ValueError, RecursionError, DecimalException) as error:
            yield Entry(number, None, str(error), size)


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
            return datetime.combine(value, time(), UTC)
        case Decimal():
            return Decimal128(value)
        case time() | timedelta():
            return str(value)
    return value
