"""Rows on their way into a file: CSV, NDJSON and Parquet, portion by portion.

CSV is that of PostgreSQL's COPY: commas, quotes only where needed, `""` for an empty text and nothing for NULL. NDJSON
has a row's JSON on each line (worker/rows.py). In Parquet numbers, booleans, dates and times have their own types,
bytes are binary, and all else, decimals too, is text. Everything here computes: call it in a thread.
"""

import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import Any, Literal, Protocol

import msgspec

from worker.compression import Compression, Deflating
from worker.errors import TaskError
from worker.rows import Column, Row, plain, to_json

Format = Literal["csv", "ndjson", "parquet"]

GROUP_ROWS, GROUP_BYTES = 100_000, 16 << 20  # of a Parquet row group, which is in memory as a whole
_ENDINGS: dict[Compression | None, str] = {None: "", "gzip": ".gz", "zstd": ".zst"}
_TYPES: dict[Format, str] = {
    "csv": "text/csv",
    "ndjson": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
}


def file_name(format: Format, compression: Compression | None) -> tuple[str, str]:
    """Name and content type of an exported file; Parquet compresses inside."""
    if format == "parquet" or compression is None:
        return f"export.{format}", _TYPES[format]
    return f"export.{format}{_ENDINGS[compression]}", f"application/{compression}"


class Buffer:
    """A sink that is emptied by `take`."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.size = 0  # bytes that were ever written
        self.closed = False

    def write(self, data: bytes, /) -> int:
        # Parquet's writer reuses its memory.
        self._parts.append(bytes(data))
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        """Nothing to do: `take` gives what was written."""

    def close(self) -> None:
        self.closed = True

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


class Encoder(Protocol):
    """Makes a file of rows. Each call gives the bytes that are ready by then."""

    def write(self, rows: Sequence[Row], columns: Sequence[Column]) -> bytes: ...

    def finish(self, columns: Sequence[Column]) -> bytes: ...


def encoder(format: Format, compression: Compression | None) -> Encoder:
    """The encoder of a format."""
    if format == "parquet":
        return _Parquet(compression)
    return _Lines(_csv if format == "csv" else _ndjson, Squeeze(compression), header=format == "csv")


class Squeeze:
    """Compresses pieces, or gives them as they are."""

    def __init__(self, compression: Compression | None) -> None:
        self._buffer = Buffer()
        self._deflating = None if compression is None else Deflating(self._buffer, compression)

    def write(self, data: bytes) -> bytes:
        if self._deflating is None:
            return data
        self._deflating.write(data)
        return self._buffer.take()

    def finish(self) -> bytes:
        if self._deflating is not None:
            self._deflating.finish()
        return self._buffer.take()


class _Lines:
    def __init__(self, lines: Callable[[Sequence[Row]], str | bytes], squeeze: Squeeze, *, header: bool) -> None:
        self._lines = lines
        self._squeeze = squeeze
        self._header = header

    def write(self, rows: Sequence[Row], columns: Sequence[Column]) -> bytes:
        try:
            return self._squeeze.write(self._head(columns) + _bytes(self._lines(rows)))
        except UnicodeEncodeError:
            raise TaskError("sql_error", "a value is no valid Unicode text", retryable=False) from None

    def finish(self, columns: Sequence[Column]) -> bytes:
        return self._squeeze.write(self._head(columns)) + self._squeeze.finish()

    def _head(self, columns: Sequence[Column]) -> bytes:
        if not self._header:
            return b""
        self._header = False
        return (",".join(_cell(column.name) for column in columns) + "\n").encode()


def _bytes(data: str | bytes) -> bytes:
    return data if isinstance(data, bytes) else data.encode()


def _ndjson(rows: Sequence[Row]) -> bytes:
    return b"".join(bytes(to_json(row)) + b"\n" for row in rows)


_QUOTED = re.compile(r'[",\r\n]|^$|^\\\.$|^ | $')


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = _text(value)
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def _csv(rows: Sequence[Row]) -> str:
    return "".join([",".join(map(_cell, row.values())) + "\n" for row in rows])


def _text(value: Any) -> str:
    """A value as text: of numbers and texts their own, of all else as JSON has it, without quotes."""
    kind = type(value)
    if kind is str:
        return str(value)
    if kind is int:
        return str(value)
    body = msgspec.json.encode(plain(value), enc_hook=plain).decode()
    return str(msgspec.json.decode(body)) if body.startswith('"') else body


# ------------------------------------------------------------------------------------------------------------- Parquet

_NUMBERS = {
    "int2": "int16",
    "int4": "int32",
    "int8": "int64",
    "integer": "int64",
    "float4": "float32",
    "float8": "float64",
    "real": "float64",
    "bool": "bool",
    "date": "date32",
    "bytea": "binary",
    "blob": "binary",
}


class _Parquet:
    def __init__(self, compression: Compression | None) -> None:
        self._codec = compression or "zstd"
        self._buffer = Buffer()
        self._writer: Any = None
        self._schema: Any = None
        self._batches: list[Any] = []
        self._rows = self._bytes = 0

    def write(self, rows: Sequence[Row], columns: Sequence[Column]) -> bytes:
        import pyarrow as pa  # noqa: PLC0415 - large, and most jobs need none

        self._open(columns)
        arrays = [self._array(field, [row[field.name] for row in rows]) for field in self._schema]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._group()
        return self._buffer.take()

    def finish(self, columns: Sequence[Column]) -> bytes:
        self._open(columns)
        self._group()
        self._writer.close()
        return self._buffer.take()

    def _group(self) -> None:
        import pyarrow as pa  # noqa: PLC0415 - likewise

        if self._batches:
            self._writer.write_table(pa.Table.from_batches(self._batches))
        self._batches, self._rows, self._bytes = [], 0, 0

    def _open(self, columns: Sequence[Column]) -> None:
        import pyarrow as pa  # noqa: PLC0415 - likewise
        import pyarrow.parquet as pq  # noqa: PLC0415 - likewise

        if self._writer is not None:
            return
        times = {"timestamp": pa.timestamp("us"), "timestamptz": pa.timestamp("us", "UTC"), "time": pa.time64("us")}

        def of(type: str) -> Any:
            name = _NUMBERS.get(type)
            return times.get(type, pa.string()) if name is None else pa.type_for_alias(name)

        self._schema = pa.schema([(column.name, of(column.type)) for column in columns])
        self._writer = pq.ParquetWriter(self._buffer, self._schema, compression=self._codec)

    def _array(self, field: Any, values: list[Any]) -> Any:
        import pyarrow as pa  # noqa: PLC0415 - likewise

        if pa.types.is_string(field.type):
            values = [None if value is None else _text(value) for value in values]
        elif (pa.types.is_date(field.type) or pa.types.is_timestamp(field.type)) and any(
            isinstance(value, date) and not isinstance(plain(value), date | datetime) for value in values
        ):
            raise _misfit(field, "an infinity")
        try:
            return pa.array(values, field.type)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            raise _misfit(field, "another value") from None


def _misfit(field: Any, what: str) -> TaskError:
    message = f"the column {field.name!r} is of {field.type} and has {what} too: cast it in the statement"
    return TaskError("sql_error", message, retryable=False)
