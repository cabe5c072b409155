"""Rows out of a file: CSV, NDJSON, a JSON array and Parquet, plain or compressed, one after another with their lines.

What `sql.import` and `mongo.import` read. CSV is UTF-8 with a header and commas; an empty value is
null unless it is quoted. A row that is wrong is told of and the next ones are read; `file.convert`
(worker/tandem_worker/tables/source.py) takes the whole file or nothing. Everything here blocks:
call it in a thread.
"""

import csv
import io
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import msgspec

from tandem_worker.archives.compression import Compression, compression_of, inflated
from tandem_worker.errors import Permanent
from tandem_worker.tables.json_array import elements
from tandem_worker.tables.table import Format
from tandem_worker.tables.text import as_file

LONGEST = 16 << 20  # bytes of a line or a value
_CELL = re.compile(r'(?:^|,)(?:(?P<quoted>"(?:[^"]|"")*")|[^,"\r\n]*)')


class Record(NamedTuple):
    """A row of the file: its line (in Parquet its number, from 1), its bytes, its values or why it has none."""

    line: int
    size: int  # roughly
    values: list[Any]
    problem: str | None = None


class Records(NamedTuple):
    """The file's columns, and its rows, whose values have their order."""

    columns: list[str]
    rows: Iterator[Record]


class Item(NamedTuple):
    """A row as an object, without its nulls where it stood in columns; or why it is none."""

    line: int
    object: dict[str, Any] | None
    problem: str
    size: int  # bytes, roughly


def read(pieces: Iterable[bytes], format: Format, compression: Compression | None) -> Records:
    """What the file holds, whose bytes these are; how it is compressed its first bytes say, unless it is given."""
    pieces = iter(pieces)
    first = next(pieces, b"")
    if format == "parquet":
        return _parquet(first, pieces)
    lines = _lines(inflated(chain((first,), pieces), compression or compression_of(first)))
    return _csv(lines) if format == "csv" else _ndjson(lines)


def items(
    pieces: Iterable[bytes], format: Format, compression: Compression | None
) -> Iterator[Item]:
    """The same for rows that may each have other keys."""
    if format in ("csv", "parquet"):
        return _of_columns(read(pieces, format, compression))
    pieces = iter(pieces)
    first = next(pieces, b"")
    whole = inflated(chain((first,), pieces), compression or compression_of(first))
    texts = _lines(whole) if format == "ndjson" else elements(_text(whole))
    return _of_json(texts)


def _of_json(texts: Iterator[str]) -> Iterator[Item]:
    for number, text in enumerate(texts, 1):
        if text.strip():
            found = _object(text)
            if isinstance(found, str):
                yield Item(number, None, found, len(text))
            else:
                yield Item(number, found, "", len(text))


def _of_columns(records: Records) -> Iterator[Item]:
    for line, size, values, problem in records.rows:
        if problem is None:
            pairs = zip(records.columns, values, strict=True)
            yield Item(line, {name: value for name, value in pairs if value is not None}, "", size)
        else:
            yield Item(line, None, problem, size)


def _text(pieces: Iterator[bytes]) -> Callable[[int], str]:
    text = io.TextIOWrapper(as_file(pieces), "utf-8-sig", newline="\n")

    def characters(count: int) -> str:
        try:
            return text.read(count)
        except UnicodeDecodeError:
            raise Permanent("invalid_file", "the file is no UTF-8 text") from None

    return characters


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Each with its end."""
    rest = b""
    try:
        for piece in pieces:
            whole, end, rest = (rest + piece).rpartition(b"\n")
            if end:
                for line in whole.decode().split("\n"):
                    yield line + "\n"
            if len(rest) > LONGEST:
                raise Permanent("too_large", f"a line has more than {LONGEST} bytes")
        if rest:
            yield rest.decode()
    except UnicodeDecodeError:
        raise Permanent("invalid_file", "the file is no UTF-8 text") from None


# ---------------------------------------------------------------------------------------------- CSV


class _Raw:
    """Lines on their way to the reader, kept until their row is complete."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self.kept: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.kept.append(line)
            yield line


def _csv(lines: Iterator[str]) -> Records:
    csv.field_size_limit(LONGEST)
    first = next(lines, "").removeprefix("\ufeff")
    raw = _Raw(chain((first,), lines))
    reader = csv.reader(raw, strict=True)
    try:
        columns = next(reader, [])
    except csv.Error as error:
        raise Permanent("invalid_file", f"the header cannot be read: {error}") from None
    raw.kept.clear()
    return Records(_named(columns), _csv_rows(reader, raw, len(columns)))


def _csv_rows(reader: Any, raw: _Raw, width: int) -> Iterator[Record]:
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(line, 0, ["".join(raw.kept)[:1000]], str(error))
        else:
            size = sum(map(len, raw.kept))
            if len(cells) == width:
                yield Record(line, size, _nulls(cells, raw.kept) if "" in cells else cells)
            elif cells:  # an empty line is none
                yield Record(line, size, cells, f"it has {len(cells)} values, the header {width}")
            elif width == 1:
                yield Record(line, size, [None])
        raw.kept.clear()


def _nulls(cells: list[str], raw: list[str]) -> list[str | None]:
    text = "".join(raw)
    if '""' not in text:
        return [cell or None for cell in cells]
    quoted = [match["quoted"] is not None for match in _CELL.finditer(text.rstrip("\r\n"))]
    return [
        cell if cell or (number < len(quoted) and quoted[number]) else None
        for number, cell in enumerate(cells)
    ]


# ---------------------------------------------------------------------------------- NDJSON, Parquet


def _ndjson(lines: Iterator[str]) -> Records:
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    first = next(numbered, None)
    if first is None:
        return Records([], iter(()))
    row = _object(first[1])
    if isinstance(row, str):
        raise Permanent("invalid_file", f"line {first[0]}: {row}")
    columns = _named(list(row))

    def rows() -> Iterator[Record]:
        yield Record(first[0], len(first[1]), list(row.values()))
        known = set(columns)
        for number, line in numbered:
            found = _object(line)
            if isinstance(found, str):
                yield Record(number, len(line), [line[:1000].rstrip("\n")], found)
            elif found.keys() <= known:
                yield Record(number, len(line), [found.get(column) for column in columns])
            else:
                other = next(name for name in found if name not in known)
                yield Record(
                    number, len(line), [line[:1000].rstrip("\n")], f"the first row has no {other!r}"
                )

    return Records(columns, rows())


def _object(line: str) -> dict[str, Any] | str:
    """The line's object, or why it is none."""
    try:
        value = msgspec.json.decode(line.removeprefix("\ufeff"))
    except (msgspec.DecodeError, RecursionError) as error:
        return f"it is no JSON: {error}"
    return value if isinstance(value, dict) else "it is no JSON object"


def _parquet(first: bytes, pieces: Iterator[bytes]) -> Records:
    from tandem_worker.tables.parquet import ParquetInput  # noqa: PLC0415 - Arrow is large, and most jobs need none

    # What describes the file stands at its end.
    file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as rows are read
    file.write(first)
    for piece in pieces:
        file.write(piece)
    try:
        table = ParquetInput(file)
    except Permanent:
        file.close()
        raise

    def rows() -> Iterator[Record]:
        number = 0
        with file:
            for batch in table.batches():
                for values in zip(*batch.columns, strict=True):
                    number += 1
                    yield Record(number, weight(values), list(values))

    return Records(table.names, rows())


def weight(values: Iterable[Any]) -> int:
    """About how many bytes they take."""
    return sum(len(value) if isinstance(value, str | bytes) else 16 for value in values)


def _named(columns: list[str]) -> list[str]:
    if len(set(columns)) < len(columns):
        raise Permanent("invalid_file", "two columns of the file have one name")
    return columns
