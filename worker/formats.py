"""Tables as they are written: CSV, NDJSON, a JSON array, Parquet; batch by batch into whatever takes bytes."""

import base64
import csv
import io
from typing import Any, NamedTuple, Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from worker.compression import Compression, Sink
from worker.errors import Permanent

GROUP_ROWS, GROUP_BYTES = 1 << 17, 32 << 20  # of a Parquet file


class Batch(NamedTuple):
    """Some rows, by column."""

    columns: list[list[Any]]
    rows: int


class Output(Protocol):
    """What a table is written to."""

    def write(self, batch: Batch) -> None:
        """Add rows."""

    def end(self) -> None:
        """The table is whole; the sink is not closed."""


class CsvOutput:
    """UTF-8, commas, quotes where they are needed, lines ended by a line feed; nulls are empty fields."""

    def __init__(self, sink: Sink, names: list[str]) -> None:
        self._sink = sink
        self._text = io.StringIO(newline="")
        self._rows = csv.writer(self._text, lineterminator="\n")
        if names:
            self._rows.writerow(names)

    def write(self, batch: Batch) -> None:
        self._rows.writerows(zip(*([_text(value) for value in column] for column in batch.columns), strict=True))
        self._hand_over()

    def end(self) -> None:
        self._hand_over()

    def _hand_over(self) -> None:
        self._sink.write(self._text.getvalue().encode())
        self._text.seek(0)
        self._text.truncate()


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case bytes():
            return base64.b64encode(value).decode()
    return json_text(value).strip('"') if not isinstance(value, dict | list | tuple) else json_text(value)


def json_text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


class JsonOutput:
    """NDJSON, or an array with one row a line."""

    def __init__(self, sink: Sink, names: list[str], *, array: bool) -> None:
        self._sink = sink
        self._names = names
        self._array = array
        self._begun = False

    def write(self, batch: Batch) -> None:
        names = self._names
        rows = [dict(zip(names, row, strict=True)) for row in zip(*batch.columns, strict=True)] or [{}] * batch.rows
        if not self._array:
            self._sink.write(msgspec.json.Encoder().encode_lines(rows))
            return
        self._sink.write(b",\n" if self._begun else b"[\n")
        self._sink.write(b",\n".join(map(msgspec.json.encode, rows)))
        self._begun = True

    def end(self) -> None:
        if self._array:
            self._sink.write(b"\n]\n" if self._begun else b"[]\n")


class ParquetOutput:
    """Row groups of at most about GROUP_ROWS rows and GROUP_BYTES."""

    def __init__(self, sink: Sink, schema: Any, compression: Compression | None) -> None:
        self._schema = schema
        self._file = pq.ParquetWriter(_Raw(sink), schema, compression=compression or "zstd")
        self._group: list[Any] = []
        self._rows = self._bytes = 0

    def write(self, batch: Batch) -> None:
        try:
            arrays = [pa.array(column, field.type) for column, field in zip(batch.columns, self._schema, strict=True)]
        except UnicodeError:
            raise Permanent("invalid_file", "a text in it is no Unicode") from None
        self.add(pa.record_batch(arrays, schema=self._schema))

    def add(self, batch: Any) -> None:
        """The same for a batch of Arrow's."""
        self._group.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def end(self) -> None:
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._group:
            self._file.write_table(pa.Table.from_batches(self._group, self._schema), row_group_size=GROUP_ROWS * 2)
        self._group = []
        self._rows = self._bytes = 0


class _Raw(io.RawIOBase):
    """A sink as a file that Arrow writes to; its end is the sink's owner's to tell."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return self._sink.write(bytes(data))
