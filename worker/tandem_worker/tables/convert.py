"""Tables from one format to another, in batches; read twice if all rows decide the columns' types.

A CSV column has the type that all of its fields have: integer, number, or boolean (`true`,
`false`). All other columns are text, and so are numbers that would not come back letter by letter
(`007`, `3.10`, 19 digits and more). An empty field is a null, `""` an empty text. Objects and
arrays, and columns of mixed types, become JSON text in CSV and Parquet. In JSON, bytes are base64,
times RFC 3339, decimals strings, and NaN and the infinities null.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import IO, Any, Literal

import msgspec

from tandem_worker.archives.compression import ByteSink, Compression, Deflating
from tandem_worker.errors import Permanent
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.sync import SyncFiles
from tandem_worker.tables.batches import batched
from tandem_worker.tables.names import output_name, split_name, uncompressed
from tandem_worker.tables.parquet import ParquetReader, ParquetWriter
from tandem_worker.tables.reader import FileRow
from tandem_worker.tables.schema import ObjectColumns, check_width
from tandem_worker.tables.source import TableSource
from tandem_worker.tables.table import ColumnBatch, Columns, TableFormat
from tandem_worker.tables.writers import JsonWriter, open_writer

ColumnType = Literal["int64", "double", "bool", "string"]  # Arrow's names

BATCH_ROWS = 4096
BATCH_BYTES = 4 << 20  # of the source
_is_int64 = re.compile(r"0|-?[1-9][0-9]{0,17}").fullmatch
_is_exact_integer = re.compile(r"0|-?[1-9][0-9]{0,14}").fullmatch  # as a double
_EXACT_INTEGER_CHARS = 15
_NOT_FINITE = frozenset({"nan", "inf", "-inf"})
_BOOLS = frozenset({"true", "false", "True", "False", "TRUE", "FALSE"})
_PARSERS: dict[ColumnType, Callable[[str], Any]] = {
    "int64": int,
    "double": float,
    "bool": lambda text: text.lower() == "true",
}


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
                _read_csv(source, to) if source.format == "csv" else _read_objects(source)
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


def _column_types(width: int, rows: Iterator[FileRow]) -> list[ColumnType]:
    possible: list[list[ColumnType]] = [["int64", "double", "bool"] for _ in range(width)]
    filled = [False] * width
    for batch in _batches(rows):
        for index, column in enumerate(zip(*batch, strict=True)):
            if possible[index] and (fields := [field for field in column if field is not None]):
                filled[index] = True
                possible[index] = _fitting(possible[index], fields)
    return [
        types[0] if types and full else "string"
        for types, full in zip(possible, filled, strict=True)
    ]


def _fitting(types: list[ColumnType], fields: list[str]) -> list[ColumnType]:
    """Those of the types that all fields have."""
    fitting: list[ColumnType] = []
    if "int64" in types and all(map(_is_int64, fields)):
        fitting.append("int64")
    if "double" in types:
        # Short integers need no look at their doubles.
        short = bool(fitting) and max(map(len, fields)) <= _EXACT_INTEGER_CHARS
        if short or _are_doubles(fields):
            fitting.append("double")
    if "bool" in types and _BOOLS.issuperset(fields):
        fitting.append("bool")
    return fitting


def _are_doubles(fields: list[str]) -> bool:
    """Whether all are written as their doubles are, or are integers that a double holds."""
    try:
        texts = map(repr, map(float, fields))
        changed = [field for field, text in zip(fields, texts, strict=True) if field != text]
    except ValueError:
        return False
    return all(map(_is_exact_integer, changed)) and _NOT_FINITE.isdisjoint(fields)


def _typed(rows: Iterator[FileRow], types: list[ColumnType] | list[None]) -> Iterator[ColumnBatch]:
    """The rows with typed values; fields of type None stay text."""
    for batch in _batches(rows):
        columns: list[list[Any]] = []
        for type_, column in zip(types, zip(*batch, strict=True), strict=True):
            if type_ is None or type_ == "string":
                columns.append(list(column))
            else:
                parse = _PARSERS[type_]
                columns.append([None if field is None else parse(field) for field in column])
        yield ColumnBatch(columns, len(batch))


def _read_objects(source: TableSource) -> tuple[Columns, Iterator[ColumnBatch]]:
    found = ObjectColumns()
    for row in source.values(objects=True):
        found.add(row.value)
    batches = map(found.batch, _batches(source.values(objects=True)))
    return Columns(found.names, found.types), batches


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
