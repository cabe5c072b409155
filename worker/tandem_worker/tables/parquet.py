"""Parquet with Arrow, which is large: import this module only where a job needs it."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tandem_worker.archives.compression import ByteSink, Compression
from tandem_worker.errors import Permanent
from tandem_worker.tables.schema import distinct
from tandem_worker.tables.table import ColumnBatch, Columns, TypeMismatch

# A row group is in memory as a whole.
GROUP_ROWS = 1 << 17
GROUP_BYTES = 8 << 20
READ_ROWS = 4096  # at once
_TIMES = {
    "timestamptz": pa.timestamp("us", "UTC"),
    "timestamp": pa.timestamp("us"),
    "time": pa.time64("us"),
}


def schema(columns: Columns) -> Any:
    """Arrow's schema of the columns."""
    types = [_TIMES[type] if type in _TIMES else pa.type_for_alias(type) for type in columns.types]
    return pa.schema(list(zip(columns.names, types, strict=True)))


class ParquetWriter:
    """Writes row groups of about GROUP_ROWS or GROUP_BYTES; `text` converts for text columns."""

    def __init__(
        self,
        sink: ByteSink,
        schema: Any,
        compression: Compression | None,
        text: Callable[[Any], str] = str,
    ) -> None:
        self._schema = schema
        self._text = text
        self._file = pq.ParquetWriter(_SinkFile(sink), schema, compression=compression or "zstd")
        self._group: list[Any] = []
        self._rows = self._bytes = 0

    def write(self, batch: ColumnBatch) -> None:
        """Raises TypeMismatch."""
        arrays = [
            self._array(column, field)
            for column, field in zip(batch.columns, self._schema, strict=True)
        ]
        self.add(pa.record_batch(arrays, schema=self._schema))

    def add(self, batch: Any) -> None:
        """Append an Arrow batch."""
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
        kinds = set(map(type, values))
        try:
            if str in kinds and not pa.types.is_string(field.type):
                values = _read_texts(values, field.type)
            if float in kinds and pa.types.is_integer(field.type):
                raise TypeError("Arrow would cut the fraction")
            return pa.array(values, field.type)
        except UnicodeError:
            raise
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            raise TypeMismatch(field.name, str(field.type)) from None

    def _flush(self) -> None:
        if self._group:
            self._file.write_table(
                pa.Table.from_batches(self._group, self._schema), row_group_size=GROUP_ROWS * 2
            )
        self._group = []
        self._rows = self._bytes = 0


def _read_texts(values: list[Any], type: Any) -> Any:
    """Values among which are times and non-finite floats as text, as a database writes them."""
    if pa.types.is_time(type):
        return [time.fromisoformat(value) if isinstance(value, str) else value for value in values]
    if pa.types.is_temporal(type):
        return pa.array(values, pa.string()).cast(type)
    if pa.types.is_floating(type):
        return [float(value) if isinstance(value, str) else value for value in values]
    raise TypeError("text among values of another type")


class _SinkFile(io.RawIOBase):
    """A sink as a file for Arrow; closing it does not close the sink."""

    def __init__(self, sink: ByteSink) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        # A copy: Arrow reuses its memory.
        return self._sink.write(bytes(data))


class ParquetReader:
    """A Parquet file, with one batch of rows in memory. Raises Permanent `invalid_file`."""

    def __init__(self, file: Any) -> None:
        with _malformed():
            # Without read-ahead and threads, only the pages being decoded are in memory.
            self._file = pq.ParquetFile(
                file,
                buffer_size=1 << 20,
                pre_buffer=False,
                coerce_int96_timestamp_unit="us",  # as nanoseconds, 9999 and 0001 would overflow
            )
            self.schema = self._file.schema_arrow
        self.names = distinct(list(self.schema.names))
        self.rows: int = self._file.metadata.num_rows

    def arrow_batches(self) -> Iterator[Any]:
        """The rows in Arrow batches."""
        batches = self._file.iter_batches(READ_ROWS, use_threads=False)
        while True:
            with _malformed():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _fine_columns(self) -> set[str]:
        """The names of the timestamp columns with a value that is not of whole microseconds."""
        names = [
            field.name
            for field in self.schema
            if pa.types.is_timestamp(field.type) and field.type.unit == "ns"
        ]
        fine: set[str] = set()
        with _malformed():
            for batch in self._file.iter_batches(READ_ROWS, columns=names, use_threads=False):
                for name in names:
                    nanoseconds = batch.column(name).cast(pa.int64())
                    rest = pc.subtract(nanoseconds, pc.multiply(pc.divide(nanoseconds, 1000), 1000))
                    if pc.any(pc.not_equal(rest, 0)).as_py():
                        fine.add(name)
        return fine

    def batches(self) -> Iterator[ColumnBatch]:
        """The rows as Python values. Each column has one form, decided by all of its values."""
        fine = self._fine_columns()
        for batch in self.arrow_batches():
            with _malformed():
                columns = [
                    _values(column, fine=name in fine)
                    for name, column in zip(self.names, batch.columns, strict=True)
                ]
            yield ColumnBatch(columns, batch.num_rows)


@contextmanager
def _malformed() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise Permanent("invalid_file", f"malformed Parquet: {str(error)[:200]}") from None


def _values(column: Any, *, fine: bool) -> list[Any]:
    """The column as Python values; times that those cannot hold are text."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        if fine:
            return _fine_moments(column)
        if kind.unit == "ns":
            column = column.cast(pa.timestamp("us", kind.tz))
    elif pa.types.is_float16(kind) or pa.types.is_float32(kind):
        # By way of the shortest text: as a double, 0.1 would have the digits of another number.
        texts = column.cast(pa.float32()).cast(pa.string()).to_pylist()
        return [None if text is None else float(text) for text in texts]
    try:
        values: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):
        values = [_value(scalar) for scalar in column]
    return values


def _value(scalar: Any) -> Any:
    """One value that may lie outside the years 1 to 9999, or be finer than a microsecond."""
    try:
        return scalar.as_py()
    except (OverflowError, ValueError):
        text = scalar.cast(pa.string()).as_py()
        return text.replace(" ", "T", 1) if pa.types.is_timestamp(scalar.type) else text


def _fine_moments(column: Any) -> list[Any]:
    """RFC 3339 with nine digits."""
    texts = column.cast(pa.string()).to_pylist()
    return [None if text is None else text.replace(" ", "T", 1) for text in texts]
