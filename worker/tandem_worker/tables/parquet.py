"""Parquet by Arrow, which is large: imported only where a job needs it."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tandem_worker.archives.compression import Compression, Sink
from tandem_worker.errors import Permanent
from tandem_worker.tables.table import GROUP_BYTES, GROUP_ROWS, Batch, Columns, Misfit

_TIMES = {
    "timestamptz": pa.timestamp("us", "UTC"),
    "timestamp": pa.timestamp("us"),
    "time": pa.time64("us"),
}
_STEP = 4096  # rows that are read at once


def schema(columns: Columns) -> Any:
    """The columns as Arrow has them."""
    types = [_TIMES[type] if type in _TIMES else pa.type_for_alias(type) for type in columns.types]
    return pa.schema(list(zip(columns.names, types, strict=True)))


class ParquetOutput:
    """Row groups of at most about GROUP_ROWS rows and GROUP_BYTES. In a column of text, all values become text."""

    def __init__(
        self,
        sink: Sink,
        schema: Any,
        compression: Compression | None,
        text: Callable[[Any], str] = str,
    ) -> None:
        self._schema = schema
        self._text = text
        self._file = pq.ParquetWriter(_Raw(sink), schema, compression=compression or "zstd")
        self._group: list[Any] = []
        self._rows = self._bytes = 0

    def write(self, batch: Batch) -> None:
        """Raises Misfit."""
        arrays = [
            self._array(column, field)
            for column, field in zip(batch.columns, self._schema, strict=True)
        ]
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

    def _array(self, values: list[Any], field: Any) -> Any:
        if pa.types.is_string(field.type):
            values = [
                value if value is None or type(value) is str else self._text(value)
                for value in values
            ]
        try:
            return pa.array(values, field.type)
        except UnicodeError:
            raise
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            raise Misfit(field.name, str(field.type)) from None

    def _flush(self) -> None:
        if self._group:
            self._file.write_table(
                pa.Table.from_batches(self._group, self._schema), row_group_size=GROUP_ROWS * 2
            )
        self._group = []
        self._rows = self._bytes = 0


class _Raw(io.RawIOBase):
    """A sink as a file that Arrow writes to; its end is the sink's owner's to tell."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        # Arrow uses its memory again.
        return self._sink.write(bytes(data))


class ParquetInput:
    """A Parquet file's columns and rows, of which one batch is in memory. Raises Permanent `invalid_file`."""

    def __init__(self, file: Any) -> None:
        try:
            # Without read-ahead and threads only the pages that are decoded are held.
            self._file = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
            self.schema = self._file.schema_arrow
        except _FAULTS as error:
            raise _unreadable(error) from None
        self.names: list[str] = list(self.schema.names)
        self.rows: int = self._file.metadata.num_rows
        if len(set(self.names)) < len(self.names):
            raise Permanent("invalid_file", "two columns of the file have one name")

    def arrow(self) -> Iterator[Any]:
        """The rows in Arrow's own batches."""
        batches = self._file.iter_batches(_STEP, use_threads=False)
        while True:
            try:
                batch = next(batches, None)
            except _FAULTS as error:
                raise _unreadable(error) from None
            if batch is None:
                return
            yield batch

    def batches(self) -> Iterator[Batch]:
        """The rows as Python's values."""
        for batch in self.arrow():
            try:
                columns = [_values(column) for column in batch.columns]
            except _FAULTS as error:
                raise _unreadable(error) from None
            yield Batch(columns, batch.num_rows)


_FAULTS = (pa.ArrowException, OSError, ValueError)


def _unreadable(error: Exception) -> Permanent:
    return Permanent("invalid_file", f"its Parquet cannot be read: {str(error)[:200]}")


def _values(column: Any) -> list[Any]:
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        # Python's times have microseconds; what has more is text.
        try:
            column = column.cast(pa.timestamp("us", column.type.tz))
        except pa.ArrowInvalid:
            column = column.cast(pa.string())
    values: list[Any] = column.to_pylist()
    return values
