"""The reader of tables: rows of CSV, NDJSON, JSON arrays and Parquet, one after another.

`file.convert`, `sql.import`, `mongo.import` and `file.split` all read here. What happens to a row
that cannot be read is up to the caller: `on_bad="fail"` raises Permanent `invalid_file` with its
line, `on_bad="keep"` yields it with its `problem` and goes on. Everything here blocks: call it in a
thread.
"""

import csv
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice, tee
from typing import Any, Literal, NamedTuple

import msgspec

from tandem_worker.archives.compression import Compression, compression_of, inflated
from tandem_worker.encoding import decode_raw
from tandem_worker.errors import Permanent
from tandem_worker.tables.json_array import elements
from tandem_worker.tables.schema import distinct
from tandem_worker.tables.table import TableFormat
from tandem_worker.tables.text import (
    MAX_LINE_CHARS,
    SAMPLE_BYTES,
    decoded,
    delimiter_of,
    lines,
    peek,
)

OnBad = Literal["fail", "keep"]

_BAD_ROW_CHARS = 1000  # of a row that cannot be read, kept as its value


class FileRow(msgspec.Struct, gc=False):
    """One row of a file.

    `line` is its first line, from 1 (the number of the row or element in Parquet and JSON arrays);
    `text` the row as it stands in the file, which Parquet does not have. `value` is a list of
    fields, or any JSON value; with a `problem`, it is as much of the row as could be read. `size`
    is about the number of its bytes.
    """

    line: int
    text: str
    value: Any
    size: int
    problem: str = ""


class FileTable(NamedTuple):
    """Column names, and rows whose values are lists of that length."""

    columns: list[str]
    rows: Iterator[FileRow]


def read_table(
    pieces: Iterable[bytes], format: TableFormat, compression: Compression | None
) -> FileTable:
    """A CSV or Parquet file as one table.

    The file's first bytes tell its compression, unless it is given. Bad rows are kept.
    """
    if format == "parquet":
        return _parquet_table(pieces)
    start, data = peek(_inflated(pieces, compression), SAMPLE_BYTES)
    delimiter = delimiter_of(start[:SAMPLE_BYTES].decode("utf-8-sig", errors="replace"))
    return csv_table(lines(data, "utf-8-sig", newline=""), delimiter, on_bad="keep")


def read_objects(
    pieces: Iterable[bytes],
    format: TableFormat,
    compression: Compression | None,
    *,
    exact: bool = False,
) -> Iterator[FileRow]:
    """Rows whose values are objects, each with its own keys; a null field of a column is left out.

    With `exact`, fractions in NDJSON are Raw, in the letters that the file has.
    """
    if format in ("csv", "parquet"):
        return _as_objects(read_table(pieces, format, compression))
    data = _inflated(pieces, compression)
    if format == "ndjson":
        decode = decode_raw if exact else msgspec.json.decode
        return json_rows(lines(data, "utf-8-sig"), on_bad="keep", objects=True, decode=decode)
    return json_rows(elements(decoded(data, "utf-8-sig")), on_bad="keep", objects=True)


def csv_records(lines: Iterable[str], delimiter: str, *, on_bad: OnBad) -> Iterator[FileRow]:
    """Every CSV record, of any number of fields, all of them text; an empty line has none."""
    csv.field_size_limit(MAX_LINE_CHARS)
    lines, texts = tee(lines)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    line = 1
    while True:
        try:
            for fields in reader:
                end = reader.line_num
                text = next(texts) if end == line else "".join(islice(texts, end - line + 1))
                yield FileRow(line, text, fields, len(text))
                line = end + 1
        except csv.Error as error:
            end = reader.line_num
            text = "".join(islice(texts, end - line + 1))
            yield _bad(line, text, f"malformed CSV: {error}", on_bad)
            line = end + 1
        else:
            return


def csv_table(lines: Iterable[str], delimiter: str, *, on_bad: OnBad) -> FileTable:
    """CSV with a header. An empty field is None unless it is quoted.

    What `is_preamble` tells is skipped, and so are empty lines, unless there is only one column.
    """
    records = csv_records(lines, delimiter, on_bad=on_bad)
    header = next((record for record in records if not is_preamble(record)), None)
    if header is not None and header.problem:
        raise Permanent("invalid_file", f"line {header.line}: {header.problem}")
    columns = distinct([] if header is None else header.value)
    return FileTable(columns, _csv_rows(records, len(columns), delimiter, on_bad))


def is_preamble(record: FileRow) -> bool:
    """Whether the record, of those before the header, is empty or names Excel the delimiter."""
    if record.problem:
        return False
    blank = not any(record.value) and '"' not in record.text
    return blank or re.fullmatch(r"sep=[^\r\n][\r\n]*", record.text) is not None


def _csv_rows(
    records: Iterator[FileRow], width: int, delimiter: str, on_bad: OnBad
) -> Iterator[FileRow]:
    mark = re.escape(delimiter)
    cell = re.compile(rf'(?:^|{mark})(?:(?P<quoted>"(?:[^"]|"")*")|[^{mark}"\r\n]*)')
    for record in records:
        fields = record.value
        if record.problem:
            yield record
        elif len(fields) == width:
            if "" in fields:
                _set_nulls(record, cell)
            yield record
        elif fields:
            problem = f"the row has {len(fields)} values, the header {width}"
            yield _bad(record.line, record.text, problem, on_bad, fields=fields)
        elif width == 1:
            # COPY, and our own CSV, write a null that is a row's only field as an empty line.
            record.value = [None]
            yield record


def _set_nulls(record: FileRow, cell: re.Pattern[str]) -> None:
    """Replace the empty fields by None, but not those that are quoted."""
    fields, text = record.value, record.text
    if '""' in text:
        quoted = [match["quoted"] is not None for match in cell.finditer(text.rstrip("\r\n"))]
        record.value = [
            field if field or (number < len(quoted) and quoted[number]) else None
            for number, field in enumerate(fields)
        ]
    elif fields.count("") == 1:  # faster than a new list
        fields[fields.index("")] = None
    else:
        record.value = [field or None for field in fields]


def json_rows(
    texts: Iterable[str],
    *,
    on_bad: OnBad,
    objects: bool = False,
    unit: str = "line",
    decode: Callable[[str], Any] = msgspec.json.decode,
) -> Iterator[FileRow]:
    """The values of JSON texts, without the blank ones; with `objects` all others are bad."""
    for line, given in enumerate(texts, 1):
        # A file that was joined from several may have a byte order mark at any line.
        text = given.strip().removeprefix("\ufeff")
        if not text:
            continue
        try:
            value = decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            yield _bad(line, text, f"malformed JSON: {error}", on_bad, unit=unit)
        else:
            if objects and type(value) is not dict:
                yield _bad(line, text, "the value is not a JSON object", on_bad, unit=unit)
            else:
                yield FileRow(line, text, value, len(text))


def _as_objects(table: FileTable) -> Iterator[FileRow]:
    for row in table.rows:
        if not row.problem:
            pairs = zip(table.columns, row.value, strict=True)
            row.value = {name: field for name, field in pairs if field is not None}
        yield row


def _parquet_table(pieces: Iterable[bytes]) -> FileTable:
    from tandem_worker.tables.parquet import ParquetReader  # noqa: PLC0415 - Arrow is large, and most jobs do not need it

    # Parquet's metadata stands at the end of the file.
    file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as rows are read
    try:
        for piece in pieces:
            file.write(piece)
        table = ParquetReader(file)
    except BaseException:
        file.close()
        raise

    def rows() -> Iterator[FileRow]:
        with file:
            batches = (zip(*batch.columns, strict=True) for batch in table.batches())
            for number, values in enumerate(chain.from_iterable(batches), 1):
                size = sum(len(v) if isinstance(v, str | bytes) else 16 for v in values)
                yield FileRow(number, "", list(values), size)

    return FileTable(table.names, rows())


def _inflated(pieces: Iterable[bytes], compression: Compression | None) -> Iterator[bytes]:
    start, data = peek(pieces, 4)
    return inflated(data, compression or compression_of(start))


def _bad(
    line: int, text: str, problem: str, on_bad: OnBad, *, fields: Any = None, unit: str = "line"
) -> FileRow:
    if on_bad == "fail":
        raise Permanent("invalid_file", f"{unit} {line}: {problem}")
    value = fields or [text[:_BAD_ROW_CHARS].rstrip("\n")]
    return FileRow(line, text, value, len(text), problem)
