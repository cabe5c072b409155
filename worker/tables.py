"""Tables from one format to another, in batches: the file is read twice where all of it tells the columns' types.

Types of a CSV's columns are those that all of their fields have: `integer`, `number`, `boolean` (`true`, `false`; an
empty field is a null in these three), else `text`, as are numbers that would change (`007`, 19 digits and more).
Objects and arrays, and columns of mixed types, become JSON text in CSV and Parquet. In JSON, bytes are base64, times
RFC 3339, decimals strings, and what is no finite number null.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import IO, Any, Literal, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from worker.compression import Compression, Deflating, Sink
from worker.errors import Permanent
from worker.files import FileRef
from worker.formats import Batch, CsvOutput, JsonOutput, Output, ParquetOutput, json_text
from worker.sources import Format, Source, plain_name
from worker.sync import SyncFiles

Kind = Literal["integer", "number", "boolean", "text", "mixed"]

BATCH_ROWS, BATCH_BYTES = 4096, 4 << 20  # of the source
COLUMNS = 10_000
_FORMS: dict[Kind, Callable[[str], object]] = {
    "integer": re.compile(r"0|-?[1-9][0-9]{0,17}").fullmatch,
    "number": re.compile(r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,17})?(?:[eE][+-]?[0-9]{1,2})?").fullmatch,
    "boolean": {"true", "false", "True", "False", "TRUE", "FALSE"}.__contains__,
}
_ARROW = {"integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
_ENDINGS = {None: "", "gzip": ".gz", "zstd": ".zst"}
_TYPES: dict[str, str] = {
    "csv": "text/csv",
    "ndjson": "application/x-ndjson",
    "json": "application/json",
    "parquet": "application/vnd.apache.parquet",
    "gzip": "application/gzip",
    "zstd": "application/zstd",
}


class Made(NamedTuple):
    """A table that was written."""

    file: FileRef
    row_count: int


def passes(source: Format, to: Format) -> int:
    """How often a source is read: twice where all of it tells the columns and their types."""
    return 2 if (source == "csv" and to != "csv") or (source in ("json", "ndjson") and to in ("csv", "parquet")) else 1


def convert(files: SyncFiles, source: Source, to: Format, compression: Compression | None) -> Made:
    """Write the source in another format, `<its name>.<to>`; Parquet is compressed inside (Zstandard unless said)."""
    outside = None if to == "parquet" else compression
    name = f"{plain_name(source.ref)[0]}.{to}{_ENDINGS[outside]}"
    made = files.create(name, _TYPES[outside or to])
    deflating = None if outside is None else Deflating(made, outside)
    sink: Sink = made if deflating is None else deflating
    with ExitStack() as stack:
        if source.format == "parquet":
            count = _from_parquet(source, to, sink, compression, stack)
        elif source.format != "csv" and to in ("json", "ndjson"):
            count = _items(source, to, sink)
        else:
            names, kinds = _schema(source, to)
            batches = _records(source, kinds) if source.format == "csv" else _objects(source, names, kinds)
            count = _write(_out(to, sink, names, kinds, compression), batches)
    if deflating is not None:
        deflating.finish()
    return Made(made.commit(), count)


def _write(out: Output, batches: Iterator[Batch]) -> int:
    count = 0
    for batch in batches:
        out.write(batch)
        count += batch.rows
    out.end()
    return count


def _out(to: Format, sink: Sink, names: list[str], kinds: list[Kind], compression: Compression | None) -> Output:
    if to == "parquet":
        types = [_ARROW.get(kind, pa.string()) for kind in kinds]
        return ParquetOutput(sink, pa.schema(list(zip(names, types, strict=True))), compression)
    return CsvOutput(sink, names) if to == "csv" else JsonOutput(sink, names, array=to == "json")


# ------------------------------------------------------------------------------------------------------------- reading


def _schema(source: Source, to: Format) -> tuple[list[str], list[Kind]]:
    """The table's columns; for CSV to CSV all are text, since nothing in them is to change."""
    if source.format != "csv":
        return _object_schema(source)
    records = source.records()
    names = next(records, [])
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Permanent("invalid_file", f"two columns are called {twice[:100]!r}")
    _few(len(names))
    if to == "csv":
        return names, ["text"] * len(names)
    possible: list[list[Kind]] = [list(_FORMS) for _ in names]
    filled = [False] * len(names)
    for batch in _batches(source, records):
        for index, column in enumerate(batch.columns):
            if possible[index]:
                values = list(filter(None, column))
                filled[index] = filled[index] or bool(values)
                possible[index] = [kind for kind in possible[index] if all(map(_FORMS[kind], values))]
    return names, [kinds[0] if kinds and full else "text" for kinds, full in zip(possible, filled, strict=True)]


def _batches(source: Source, records: Iterator[list[str]]) -> Iterator[Batch]:
    rows: list[list[str]] = []
    start = source.count
    for fields in records:
        rows.append(fields)
        if len(rows) == BATCH_ROWS or source.count - start > BATCH_BYTES:
            yield Batch([list(column) for column in zip(*rows, strict=True)], len(rows))
            rows = []
            start = source.count
    if rows:
        yield Batch([list(column) for column in zip(*rows, strict=True)], len(rows))


def _records(source: Source, kinds: list[Kind]) -> Iterator[Batch]:
    records = source.records()
    next(records, None)
    read: dict[Kind, Callable[[str], Any]] = {
        "integer": int,
        "number": float,
        "boolean": lambda text: text.lower() == "true",
    }
    for batch in _batches(source, records):
        columns: list[list[Any]] = []
        for kind, column in zip(kinds, batch.columns, strict=True):
            typed = read.get(kind)
            columns.append(column if typed is None else [typed(text) if text else None for text in column])
        yield Batch(columns, batch.rows)


def _object_schema(source: Source) -> tuple[list[str], list[Kind]]:
    """The keys of all objects in the order in which they first come, and what their values are."""
    seen: dict[str, set[str]] = {}
    for item in _only_objects(source):
        for name, value in item.items():
            if value is None:
                seen.setdefault(name, set())
            elif name in seen:
                seen[name].add(_kind(value))
            else:
                seen[name] = {_kind(value)}
        _few(len(seen))
    return list(seen), [_common(kinds) for kinds in seen.values()]


def _kind(value: object) -> str:
    match value:
        case str():
            return "text"
        case bool():
            return "boolean"
        case int():
            return "integer" if abs(value) <= 1 << 53 else "long" if -(1 << 63) <= value < 1 << 63 else "mixed"
        case float():
            return "number"
    return "mixed"


def _common(seen: set[str]) -> Kind:
    if seen <= {"text"}:
        return "text"
    if seen == {"boolean"}:
        return "boolean"
    if seen <= {"integer", "long"}:
        return "integer"
    return "number" if seen <= {"integer", "number"} else "mixed"


def _objects(source: Source, names: list[str], kinds: list[Kind]) -> Iterator[Batch]:
    def batch(items: list[dict[str, Any]]) -> Batch:
        columns: list[list[Any]] = []
        for name, kind in zip(names, kinds, strict=True):
            column = [item.get(name) for item in items]
            if kind == "mixed":
                column = [value if value is None or isinstance(value, str) else json_text(value) for value in column]
            elif kind == "number":
                column = [value if value is None else float(value) for value in column]
            columns.append(column)
        return Batch(columns, len(items))

    items: list[dict[str, Any]] = []
    start = source.count
    for item in _only_objects(source):
        items.append(item)
        if len(items) == BATCH_ROWS or source.count - start > BATCH_BYTES:
            yield batch(items)
            items = []
            start = source.count
    if items:
        yield batch(items)


def _only_objects(source: Source) -> Iterator[dict[str, Any]]:
    for number, (_, item) in enumerate(source.items(), 1):
        if not isinstance(item, dict):
            raise Permanent("invalid_file", f"value {number} is no object, as a table's rows are")
        yield item


def _items(source: Source, to: Format, sink: Sink) -> int:
    """JSON to JSON: the values as they stand, without the spaces between their parts."""
    count = 0
    for text, _value in source.items():  # noqa: PERF102 - it is no dict
        before = b"" if to == "ndjson" else b",\n" if count else b"[\n"
        sink.write(before + msgspec.json.format(text.encode(), indent=-1) + (b"\n" if to == "ndjson" else b""))
        count += 1
    if to == "json":
        sink.write(b"\n]\n" if count else b"[]\n")
    return count


def _from_parquet(source: Source, to: Format, sink: Sink, compression: Compression | None, stack: ExitStack) -> int:
    file: IO[bytes]
    if source.compression is None:
        file = stack.enter_context(source.files.seek(source.ref))
    else:
        # It has no name, so nothing of it is left however this process ends.
        file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        with source.open() as inner:
            while piece := inner.read(1 << 20):
                file.write(piece)
        file.seek(0)
    try:
        # Without read-ahead and threads only the pages that are decoded are held.
        table = stack.enter_context(pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False))
        schema = table.schema_arrow
        if len(set(schema.names)) != len(schema.names):
            raise Permanent("invalid_file", "two columns have the same name")
        total, done = table.metadata.num_rows, 0
        if to == "parquet":
            out: Any = ParquetOutput(sink, schema, compression)
        else:
            out = _out(to, sink, schema.names, [], compression)
        for batch in table.iter_batches(BATCH_ROWS, use_threads=False):
            done += batch.num_rows
            source.progress(round((source.ref.size or 0) * done / max(total, 1)))
            if to == "parquet":
                out.add(batch)
            else:
                out.write(Batch([_values(column) for column in batch.columns], batch.num_rows))
        out.end()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Permanent("invalid_file", f"its Parquet cannot be read: {str(error)[:200]}") from None
    return done


def _values(column: Any) -> list[Any]:
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        # Python's times have microseconds; what has more is text.
        try:
            column = column.cast(pa.timestamp("us", column.type.tz))
        except pa.ArrowInvalid:
            column = column.cast(pa.string())
    values: list[Any] = column.to_pylist()
    return values


def _few(columns: int) -> None:
    if columns > COLUMNS:
        raise Permanent("too_large", f"the table has more than {COLUMNS} columns")
