"""Rows of a database on their way into a file, portion by portion: what `sql.export` writes.

NDJSON has a row's JSON on each line (worker/tandem_worker/rows.py). In Parquet numbers, booleans, dates and times have
their own types, bytes are binary, and all else, decimals too, is text. Everything here computes: call it in a thread.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any, Literal

from tandem_worker.compression import Compression
from tandem_worker.errors import TaskError
from tandem_worker.formats import Batch, Buffer, Columns, JsonOutput, Misfit, Output, open_output, text
from tandem_worker.rows import Column, Row, plain, to_json

Format = Literal["csv", "ndjson", "parquet"]

_ARROW = {
    "int2": "int16",
    "int4": "int32",
    "int8": "int64",
    "integer": "int64",
    "float4": "float",
    "float8": "double",
    "real": "double",
    "bool": "bool",
    "date": "date32",
    "bytea": "binary",
    "blob": "binary",
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
    "time": "time",
}


class Encoder:
    """Makes a file of rows. Each call gives the bytes that are ready by then, and may raise TaskError."""

    def __init__(self, format: Format, compression: Compression | None) -> None:
        self._format, self._compression = format, compression
        self._buffer = Buffer()
        self._output: Output | None = None

    def write(self, rows: Sequence[Row], columns: Sequence[Column]) -> bytes:
        with _explained():
            output = self._begun(columns)
            if isinstance(output, JsonOutput):
                output.add([bytes(to_json(row)) for row in rows])
            else:
                output.write(Batch([self._values(rows, column) for column in columns], len(rows)))
        return self._buffer.take()

    def finish(self, columns: Sequence[Column]) -> bytes:
        with _explained():
            self._begun(columns).end()
        return self._buffer.take()

    def _begun(self, columns: Sequence[Column]) -> Output:
        if self._output is None:
            types = [_ARROW.get(column.type, "string") for column in columns]
            names = [column.name for column in columns]
            self._output = open_output(self._buffer, self._format, self._compression, Columns(names, types, _text))
        return self._output

    def _values(self, rows: Sequence[Row], column: Column) -> list[Any]:
        values = [row[column.name] for row in rows]
        if self._format == "parquet" and column.type in ("date", "timestamp", "timestamptz"):
            for value in values:
                if isinstance(value, date) and isinstance(plain(value), str):
                    raise _misfit(column.name, column.type, "an infinity")
        return values


def _text(value: Any) -> str:
    return text(value if type(value) is float else plain(value), plain)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except UnicodeError:
        raise TaskError("sql_error", "a value is no valid Unicode text", retryable=False) from None
    except Misfit as error:
        raise _misfit(error.name, error.type, "another value") from None


def _misfit(name: str, type: str, what: str) -> TaskError:
    message = f"the column {name!r} is of {type} and has {what} too: cast it in the statement"
    return TaskError("sql_error", message, retryable=False)
