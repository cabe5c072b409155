"""Tables from one format to another, in batches; read twice if all rows decide the columns' types.

A CSV column becomes integers, numbers or booleans if JSON would write each of its fields letter by
letter as it stands (not `007`, `3.10`); `True` and `TRUE` are booleans, too. All other columns are
text. An empty field is a
null, `""` an empty text. Objects and arrays, and columns of mixed types, become JSON text in CSV
and Parquet. In JSON, bytes are base64, times RFC 3339, decimals strings, and NaN and the infinities
null.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import IO, Any

import msgspec

from tandem_worker.archives.compression import ByteSink, Compression, Deflating
from tandem_worker.errors import Permanent
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.sync import SyncFiles
from tandem_worker.tables.batches import batched
from tandem_worker.tables.names import output_name, split_name, uncompressed
from tandem_worker.tables.parquet import ParquetReader, ParquetWriter
from tandem_worker.tables.reader import FileRow
from tandem_worker.tables.schema import ObjectColumns, check_width, common_type, types_of
from tandem_worker.tables.source import TableSource
from tandem_worker.tables.table import ColumnBatch, Columns, TableFormat
from tandem_worker.tables.writers import JsonWriter, open_writer

BATCH_ROWS = 4096
BATCH_BYTES = 4 << 20  # of the source
_BOOLS = frozenset({"true", "false", "True", "False", "TRUE", "FALSE"})


def passes(source: TableFormat, to: TableFormat) -> int:
    """How often the source is read: twice if all of it decides the columns and their types."""
    if source == "csv":
        return 1 if to == "csv" else 2
    return 2 if source in ("json", "ndjson") and to in ("csv", "parquet") else 1


def convert(
    files: SyncFiles, source: TableSource, to: TableFormat, compression: Compression | None
) -> tuple[FileRef, int]:
    """Write the source as `<its name>.<to>`; returns the file and its number of rows.

    Parquet is compressed inside, with Zstandard unless `compression` says otherwise.
    """
    stem, _ = split_name(uncompressed(source.ref))
    out = files.create(*output_name(stem, to, compression))
    try:
        if source.format == "parquet":
            count = _from_parquet(source, to, out, compression)
        elif source.format != "csv" and to in ("json", "ndjson"):
            count = _json_to_json(source, to, Deflating(out, compression))
        else:
            columns, batches = (
                _read_csv(source, to) if source.format == "csv" else _read_objects(source, to)
            )
            writer = open_writer(out, to, compression, columns)
            count = 0
            for batch in batches:
                writer.write(batch)
                count += batch.rows
            writer.end()
    except UnicodeError:
        raise Permanent("invalid_file", "a text in the file is not valid Unicode") from None
    return out.commit(), count


def _read_csv(source: TableSource, to: TableFormat) -> tuple[Columns, Iterator[ColumnBatch]]:
    """The table's columns and rows; from CSV to CSV all fields stay unchanged text."""
    names, rows = source.table()
    check_width(len(names))
    if to == "csv":
        return Columns(names), _typed(rows, [None] * len(names))
    types = _column_types(len(names), rows)
    return Columns(names, types), _typed(source.table().rows, types)


def _column_types(width: int, rows: Iterator[FileRow]) -> list[str]:
    found: list[set[str]] = [set() for _ in range(width)]
    for batch in _batches(rows):
        for types, column in zip(found, zip(*batch, strict=True), strict=True):
            if "string" not in types:
                types.update(_types_of([field for field in column if field is not None]))
    return [common_type(types) for types in found]


def _types_of(fields: list[str]) -> set[str]:
    """The types of the fields: text, unless JSON would write all of them as they stand."""
    if fields and _BOOLS.issuperset(fields):
        return {"bool"}
    text = f"[{','.join(fields)}]"
    try:
        values = msgspec.json.decode(text)
        unchanged = msgspec.json.encode(values).decode() == text and len(values) == len(fields)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {"string"}
    kinds = set(map(type, values))
    if not unchanged or not kinds <= {int, float}:
        return {"string"}
    return types_of(values)


def _typed(rows: Iterator[FileRow], types: Sequence[str | None]) -> Iterator[ColumnBatch]:
    """The rows with typed values; fields of type None stay text."""
    for batch in _batches(rows):
        columns: list[list[Any]] = []
        for type_, column in zip(types, zip(*batch, strict=True), strict=True):
            if type_ is None or type_ == "string":
                columns.append(list(column))
            else:
                values = ",".join(["null" if field is None else field for field in column])
                columns.append(msgspec.json.decode(f"[{values.lower()}]"))
        yield ColumnBatch(columns, len(batch))


def _read_objects(source: TableSource, to: TableFormat) -> tuple[Columns, Iterator[ColumnBatch]]:
    found = ObjectColumns()
    add = found.add_names if to == "csv" else found.add
    batch = None
    for batch in _batches(source.objects()):
        add(batch)
    if batch is not None and not found.names:
        raise Permanent("invalid_file", "the objects have no keys, so the table has no columns")
    return Columns(found.names, found.types), map(found.batch, _batches(source.objects()))


def _batches(rows: Iterator[FileRow]) -> Iterator[list[Any]]:
    """The rows' values, as many as are converted at once."""
    for batch in batched(rows, BATCH_ROWS, BATCH_BYTES):
        yield [row.value for row in batch]


def _json_to_json(source: TableSource, to: TableFormat, out: Deflating) -> int:
    """The values as they stand, without the spaces between their parts."""
    writer = JsonWriter(out, array=to == "json")
    count = 0
    for row in source.values():
        writer.add([msgspec.json.format(row.text.encode(), indent=-1)])
        count += 1
    writer.end()
    return count


def _from_parquet(
    source: TableSource, to: TableFormat, sink: ByteSink, compression: Compression | None
) -> int:
    done = 0
    with ExitStack() as stack:
        table = ParquetReader(_seekable(source, stack))
        check_width(len(table.names))

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            source.progress(round((source.ref.size or 0) * done / max(table.rows, 1)))

        if to == "parquet":
            copy = ParquetWriter(sink, table.schema, compression)
            for arrow in table.arrow_batches():
                advance(arrow.num_rows)
                copy.add(arrow)
            copy.end()
        else:
            writer = open_writer(sink, to, compression, Columns(table.names))
            for batch in table.batches():
                advance(batch.rows)
                writer.write(batch)
            writer.end()
    return done


def _seekable(source: TableSource, stack: ExitStack) -> IO[bytes]:
    if source.compression is None:
        return stack.enter_context(source.files.seek(source.ref))
    # A file without a name: the system removes it however this process ends.
    file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    for piece in source.pieces():
        file.write(piece)
    file.seek(0)
    return file
