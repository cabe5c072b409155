"""The writer of tables: CSV, NDJSON, a JSON array or Parquet, batch by batch into a sink.

`file.convert`, `sql.export` and `mongo.export` all write here. CSV is that of PostgreSQL's COPY:
UTF-8, commas, line feeds, quotes only where needed, `""` for an empty text and nothing for a null.
Text that is not valid Unicode raises UnicodeError. Everything here computes: call it in a thread or
a process.
"""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from tandem_worker.archives.compression import ByteSink, Compression, Deflating
from tandem_worker.tables.table import ColumnBatch, Columns, TableFormat, TableWriter, plain
from tandem_worker.tables.text import DELIMITERS


def open_writer(
    sink: ByteSink, format: TableFormat, compression: Compression | None, columns: Columns
) -> TableWriter:
    """The writer of a format, compressed as a whole; Parquet inside, with Zstandard by default."""
    if format == "parquet":
        from tandem_worker.tables.parquet import ParquetWriter, schema  # noqa: PLC0415 - Arrow is large, and most jobs do not need it

        return ParquetWriter(sink, schema(columns), compression, columns.text)
    out = Deflating(sink, compression)
    if format == "csv":
        return CsvWriter(out, columns)
    return JsonWriter(out, columns.names, array=format == "json")


class CsvWriter:
    """CSV as described above; a table without columns does not even have a header."""

    def __init__(self, out: Deflating, columns: Columns) -> None:
        self._out = out
        self._text = columns.text
        if columns.names:
            self._out.write((",".join(map(_header_cell, columns.names)) + "\n").encode())

    def write(self, batch: ColumnBatch) -> None:
        rows = zip(*(map(self._cell, column) for column in batch.columns), strict=True)
        self._out.write("".join([",".join(row) + "\n" for row in rows]).encode())

    def end(self) -> None:
        self._out.finish()

    def _cell(self, value: Any) -> str:
        if value is None:
            return ""
        kind = type(value)
        if kind is int:
            return str(value)
        cell = value if kind is str else self._text(value)
        return _in_quotes(cell) if _quoted(cell) else cell


def _in_quotes(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def _header_cell(name: str) -> str:
    """The name, in quotes if a reader could take part of it for a delimiter or a mark."""
    marked = name.startswith(("\ufeff", "sep=")) or any(mark in name for mark in DELIMITERS)
    return _in_quotes(name) if marked or _quoted(name) else name


def _quoted(cell: str) -> bool:
    # A regular expression takes five times as long.
    if '"' in cell or "," in cell or "\n" in cell or "\r" in cell:
        return True
    return cell in ("", "\\.") or cell[0] == " " or cell[-1] == " "


class JsonWriter:
    """NDJSON, or a JSON array with one row per line."""

    def __init__(self, out: Deflating, names: Sequence[str] = (), *, array: bool) -> None:
        self._out = out
        self._names = names
        self._array = array
        self._begun = False

    def write(self, batch: ColumnBatch) -> None:
        names = self._names
        columns = map(_plain_column, batch.columns)
        rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        self.add(map(msgspec.json.encode, rows or [{}] * batch.rows))

    def add(self, items: Iterable[bytes]) -> None:
        """Append values of any kind that are JSON already."""
        if not self._array:
            self._out.write(b"".join([item + b"\n" for item in items]))
        elif data := b",\n".join(items):
            self._out.write((b",\n" if self._begun else b"[\n") + data)
            self._begun = True

    def end(self) -> None:
        if self._array:
            self._out.write(b"\n]\n" if self._begun else b"[]\n")
        self._out.finish()


def _plain_column(column: list[Any]) -> list[Any]:
    """The column without decimals, which msgspec would write with an exponent."""
    first = next((value for value in column if value is not None), None)
    return list(map(plain, column)) if isinstance(first, Decimal | list | dict) else column


class Buffer:
    """A sink whose bytes are fetched by `take`."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes, /) -> int:
        self._parts.append(data)
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data
