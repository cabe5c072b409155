"""Parquet with Arrow, which is large: import this module only where a job needs it."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import time
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from tandem_worker.archives.compression import ByteSink, Compression
from tandem_worker.encoding import with_floats
from tandem_worker.errors import Permanent
from tandem_worker.tables.arrow_values import (
    beyond_micro,
    has_nanoseconds,
    may_have_nanoseconds,
    values,
)
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

    def _array(self, values: Sequence[Any], field: Any) -> Any:
        if pa.types.is_string(field.type):
            values = [
                value if value is None or type(value) is str else self._text(value)
                for value in values
            ]
        kinds = set(map(type, values))
        if msgspec.Raw in kinds:  # numbers of a JSON file, as they stand
            values = with_floats(values)
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


def _read_texts(values: Sequence[Any], type: Any) -> Any:
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
        with malformed():
            self._file = _open(file, "us")  # as nanoseconds, 9999 and 0001 would overflow
            if any(one.physical_type == "INT96" for one in self._file.schema):
                self._file = _open(file, self._int96_unit(file))
            self.schema = self._file.schema_arrow
        self.names = distinct(list(self.schema.names))
        self.rows: int = self._file.metadata.num_rows

    def _int96_unit(self, file: Any) -> str:
        """The unit for 96-bit timestamps: nanoseconds if a value needs and all values allow them.

        Raises ValueError if that is not so.
        """
        fine, fits = False, True
        both = (_batches_of(_open(file, unit)) for unit in ("us", "ns"))
        for micro, nano in zip(*both, strict=True):
            for us, ns in zip(micro.columns, nano.columns, strict=True):
                if us.type != ns.type:
                    rest, all_fit = beyond_micro(us, ns)
                    fine, fits = fine or rest, fits and all_fit
        if fine and not fits:
            raise ValueError(
                "its 96-bit timestamps have both nanoseconds and years outside 1677 to 2262"
            )
        return "ns" if fine else "us"

    def arrow_batches(self) -> Iterator[Any]:
        """The rows in Arrow batches."""
        batches = _batches_of(self._file)
        while True:
            with malformed():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _fine_columns(self) -> set[str]:
        """The names of the columns with a time that is not of whole microseconds."""
        names = [field.name for field in self.schema if may_have_nanoseconds(field.type)]
        fine: set[str] = set()
        with malformed():
            for batch in _batches_of(self._file, names) if names else ():
                fine |= {name for name in names if has_nanoseconds(batch.column(name))}
        return fine

    def batches(self) -> Iterator[ColumnBatch]:
        """The rows as Python values. Each column has one form, decided by all of its values."""
        fine = self._fine_columns()
        for batch in self.arrow_batches():
            columns = []
            for name, column in zip(self.names, batch.columns, strict=True):
                with malformed(f"the column {name[:100]!r} of the Parquet file"):
                    columns.append(values(column, name in fine))
            yield ColumnBatch(columns, batch.num_rows)


@contextmanager
def malformed(what: str = "malformed Parquet") -> Iterator[None]:
    """Turns what Arrow raises for bad data into Permanent `invalid_file`."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError, LookupError) as error:
        raise Permanent("invalid_file", f"{what}: {str(error)[:200]}") from None


def _open(file: Any, int96_unit: str) -> Any:
    # Without read-ahead and threads, only the pages being decoded are in memory.
    return pq.ParquetFile(
        file, buffer_size=1 << 20, pre_buffer=False, coerce_int96_timestamp_unit=int96_unit
    )


def _batches_of(file: Any, columns: list[str] | None = None) -> Iterator[Any]:
    batches: Iterator[Any] = file.iter_batches(READ_ROWS, columns=columns, use_threads=False)
    return batches
