"""Tables from one format to another, in batches: the file is read twice where all of it tells the columns' types.

Types of a CSV's columns are those that all of their fields have: integer, number, boolean (`true`,
`false`; an empty field is a null in these three), else text, as are numbers that would change
(`007`, 19 digits and more). Objects and arrays, and columns of mixed types, become JSON text in CSV
and Parquet. In JSON, bytes are base64, times RFC 3339, decimals strings, and what is no finite
number null.
"""

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import IO, Any, Literal, NamedTuple

import msgspec

from tandem_worker.archives.compression import Compression, Deflating, Sink
from tandem_worker.errors import Permanent
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.sync import SyncFiles
from tandem_worker.tables.parquet import ParquetInput, ParquetOutput
from tandem_worker.tables.schema import Keys, few
from tandem_worker.tables.source import Source, plain_name
from tandem_worker.tables.table import Batch, Columns, Format, Output
from tandem_worker.tables.writers import JsonOutput, file_name, open_output, outside

Kind = Literal["int64", "double", "bool", "string"]  # in Arrow's words

BATCH_ROWS, BATCH_BYTES = 4096, 4 << 20  # of the source
_FORMS: dict[Kind, Callable[[str], object]] = {
    "int64": re.compile(r"0|-?[1-9][0-9]{0,17}").fullmatch,
    "double": re.compile(
        r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,17})?(?:[eE][+-]?[0-9]{1,2})?"
    ).fullmatch,
    "bool": {"true", "false", "True", "False", "TRUE", "FALSE"}.__contains__,
}


class Made(NamedTuple):
    """A table that was written."""

    file: FileRef
    row_count: int


def passes(source: Format, to: Format) -> int:
    """How often a source is read: twice where all of it tells the columns and their types."""
    return (
        2
        if (source == "csv" and to != "csv")
        or (source in ("json", "ndjson") and to in ("csv", "parquet"))
        else 1
    )


def convert(files: SyncFiles, source: Source, to: Format, compression: Compression | None) -> Made:
    """Write the source in another format, `<its name>.<to>`; Parquet is compressed inside (Zstandard unless said)."""
    made = files.create(*file_name(plain_name(source.ref)[0], to, compression))
    with ExitStack() as stack:
        try:
            if source.format == "parquet":
                count = _from_parquet(source, to, made, compression, stack)
            elif source.format != "csv" and to in ("json", "ndjson"):
                count = _items(
                    source,
                    JsonOutput(Deflating(made, outside(to, compression)), array=to == "json"),
                )
            else:
                columns, batches = (
                    _of_csv(source, to) if source.format == "csv" else _of_objects(source)
                )
                count = _write(open_output(made, to, compression, columns), batches)
        except UnicodeError:
            raise Permanent("invalid_file", "a text in it is no Unicode") from None
    return Made(made.commit(), count)


def _write(out: Output, batches: Iterator[Batch]) -> int:
    count = 0
    for batch in batches:
        out.write(batch)
        count += batch.rows
    out.end()
    return count


# ------------------------------------------------------------------------------------------ reading


def _of_csv(source: Source, to: Format) -> tuple[Columns, Iterator[Batch]]:
    """The table's columns and rows; for CSV to CSV all are text, since nothing in them is to change."""
    records = source.records()
    names = next(records, [])
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Permanent("invalid_file", f"two columns are called {twice[:100]!r}")
    few(len(names))
    if to == "csv":
        return Columns(names), _typed(source, [None] * len(names))
    possible: list[list[Kind]] = [list(_FORMS) for _ in names]
    filled = [False] * len(names)
    for batch in _batches(source, records):
        for index, column in enumerate(batch.columns):
            if possible[index]:
                values = list(filter(None, column))
                filled[index] = filled[index] or bool(values)
                possible[index] = [
                    kind for kind in possible[index] if all(map(_FORMS[kind], values))
                ]
    kinds: list[Kind] = [
        kinds[0] if kinds and full else "string"
        for kinds, full in zip(possible, filled, strict=True)
    ]
    return Columns(names, kinds), _typed(source, kinds)


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


def _typed(source: Source, kinds: list[Kind] | list[None]) -> Iterator[Batch]:
    """The rows; of text that keeps its look (None) an empty field is a null, which CSV writes as one."""
    records = source.records()
    next(records, None)
    read: dict[Kind | None, Callable[[str], Any]] = {
        "int64": int,
        "double": float,
        "bool": lambda text: text.lower() == "true",
        None: str,
    }
    for batch in _batches(source, records):
        columns: list[list[Any]] = []
        for kind, column in zip(kinds, batch.columns, strict=True):
            typed = read.get(kind)
            columns.append(
                column if typed is None else [typed(text) if text else None for text in column]
            )
        yield Batch(columns, batch.rows)


def _of_objects(source: Source) -> tuple[Columns, Iterator[Batch]]:
    keys = Keys()
    for item in _only_objects(source):
        keys.see(item)

    def batches() -> Iterator[Batch]:
        items: list[dict[str, Any]] = []
        start = source.count
        for item in _only_objects(source):
            items.append(item)
            if len(items) == BATCH_ROWS or source.count - start > BATCH_BYTES:
                yield keys.batch(items)
                items = []
                start = source.count
        if items:
            yield keys.batch(items)

    return Columns(keys.names, keys.types), batches()


def _only_objects(source: Source) -> Iterator[dict[str, Any]]:
    for number, (_, item) in enumerate(source.items(), 1):
        if not isinstance(item, dict):
            raise Permanent("invalid_file", f"value {number} is no object, as a table's rows are")
        yield item


def _items(source: Source, out: JsonOutput) -> int:
    """JSON to JSON: the values as they stand, without the spaces between their parts."""
    count = 0
    for text, _value in source.items():  # noqa: PERF102 - it is no dict
        out.add([msgspec.json.format(text.encode(), indent=-1)])
        count += 1
    out.end()
    return count


def _from_parquet(
    source: Source, to: Format, sink: Sink, compression: Compression | None, stack: ExitStack
) -> int:
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
    table = ParquetInput(file)
    few(len(table.names))
    done = 0

    def told(rows: int) -> None:
        nonlocal done
        done += rows
        source.progress(round((source.ref.size or 0) * done / max(table.rows, 1)))

    if to == "parquet":
        copy = ParquetOutput(sink, table.schema, compression)
        for batch in table.arrow():
            told(batch.num_rows)
            copy.add(batch)
        copy.end()
    else:
        out = open_output(sink, to, compression, Columns(table.names))
        for rows in table.batches():
            told(rows.rows)
            out.write(rows)
        out.end()
    return done
