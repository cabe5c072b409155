"""Documents in files, a piece at a time, both ways: NDJSON (one Extended JSON document a line), a JSON array, CSV.

CSV has the fields of the first document or those asked for; ids, dates and decimals are plain text in it, what else is
no text or number is Extended JSON, and what is read from it is text.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

import msgspec

from worker.documents import Form, invalid, plain, to_bson, to_json
from worker.errors import TaskError
from worker.operators import check_document

Format = Literal["ndjson", "json", "csv"]

MAX_DOCUMENT = 17 << 20  # bytes of one in a file; MongoDB's own limit is 16 MiB as BSON
TYPES = {"ndjson": "application/x-ndjson", "json": "application/json", "csv": "text/csv; charset=utf-8"}
_SPACE = " \t\r\n"
_TEXTUAL = frozenset({"$oid", "$numberDecimal", "$numberLong", "$numberInt", "$numberDouble"})


class Entry(NamedTuple):
    """One document of a file, or what is wrong with it; `number` counts lines (documents of an array) from 1."""

    number: int
    document: dict[str, Any] | None
    problem: str
    size: int  # bytes in the file


class Writer:
    """Makes the bytes of a file, document by document."""

    def __init__(self, format: Format, form: Form, fields: Sequence[str] | None = None) -> None:
        self._format = format
        self._form = form
        self._fields = fields
        self._count = 0

    def write(self, document: dict[str, Any]) -> bytes:
        """The next bytes. Raises TaskError `unknown_field` for a document that CSV's columns cannot hold."""
        self._count += 1
        if self._format == "csv":
            return self._row(document)
        before = b"" if self._format == "ndjson" else b"[\n" if self._count == 1 else b",\n"
        return before + to_json(document, self._form) + (b"\n" if self._format == "ndjson" else b"")

    def end(self) -> bytes:
        """The last bytes."""
        if self._format == "json":
            return b"\n]\n" if self._count else b"[]\n"
        if self._format == "csv" and not self._count and self._fields:
            return _csv(self._fields)
        return b""

    def _row(self, document: dict[str, Any]) -> bytes:
        head = b""
        if self._fields is None:
            self._fields = list(document)
        if self._count == 1:
            head = _csv(self._fields)
        for field in document:
            if field not in self._fields:
                message = (
                    f"document {self._count} has the field {field[:100]!r}, which the first has not:"
                    " give a projection that names the columns"
                )
                raise TaskError("unknown_field", message, retryable=False)
        return head + _csv([_cell(document[field], self._form) if field in document else "" for field in self._fields])


class Reader:
    """Finds the documents in the bytes of a file; both methods may take a while and raise TaskError."""

    def __init__(self, format: Format) -> None:
        self._format = format
        self._rest = b""
        self._number = 0  # of what has been read
        self._fields: list[str] | None = None  # of CSV
        self._array = ""  # of JSON: "" before it, "[" in it, "," between two, "]" after it

    def feed(self, piece: bytes) -> list[Entry]:
        """The documents that are complete with this piece."""
        data = self._rest + piece
        entries = list(self._objects(data) if self._format == "json" else self._lines(data))
        if len(self._rest) > MAX_DOCUMENT:
            raise TaskError("too_large", f"document {self._number + 1} has more than {MAX_DOCUMENT} bytes", False)  # noqa: FBT003 - retryable
        return entries

    def end(self) -> list[Entry]:
        """What was not complete when the file ended."""
        if self._format == "json":
            if self._array != "]":
                raise invalid("the file", f"is no JSON array of documents, after {self._number} of them")
            return []
        return list(self._lines(self._rest + b"\n")) if self._rest.strip() else []

    # --------------------------------------------------------------------------------------------------- lines of text

    def _lines(self, data: bytes) -> Iterator[Entry]:
        *lines, self._rest = data.split(b"\n")
        begun: list[bytes] = []  # of a CSV row with line breaks in quotes
        for line in lines:
            begun.append(line)
            row = b"\n".join(begun) if len(begun) > 1 else line
            if self._format == "csv" and row.count(b'"') % 2:
                continue
            number = self._number + 1
            self._number += len(begun)
            begun = []
            if number == 1:
                row = row.removeprefix(b"\xef\xbb\xbf")
            if row.strip():
                if self._format == "csv" and self._fields is None:
                    self._fields = self._header(row)
                else:
                    yield _entry(number, len(row) + 1, self._from_csv if self._format == "csv" else _from_json, row)
        if begun:
            self._rest = b"\n".join([*begun, self._rest])

    def _header(self, row: bytes) -> list[str]:
        try:
            fields = _cells(row)
        except ValueError as error:
            raise invalid("the header", f"is no CSV: {error}") from None
        if len(set(fields)) != len(fields) or "" in fields:
            raise invalid("the header", "has a name twice, or an empty one")
        return fields

    def _from_csv(self, row: bytes) -> Any:
        cells, fields = _cells(row), self._fields or []
        if len(cells) != len(fields):
            raise ValueError(f"{len(cells)} cells, and the header has {len(fields)}")
        return {field: cell for field, cell in zip(fields, cells, strict=True) if cell}

    # -------------------------------------------------------------------------------------------------- a JSON array

    def _objects(self, data: bytes) -> Iterator[Entry]:
        # A letter of several bytes may be cut in two: what is not yet a whole one waits.
        cut = len(data)
        while cut > len(data) - 4 and cut > 0 and data[cut - 1] & 0xC0 == 0x80:
            cut -= 1
        if cut and data[cut - 1] >= 0xC0:
            cut -= 1
        else:
            cut = len(data)
        try:
            text = data[:cut].decode("utf-8-sig" if not self._array else "utf-8")
        except UnicodeDecodeError:
            raise invalid("the file", f"is no UTF-8, after {self._number} documents") from None
        place = 0
        while True:
            while place < len(text) and text[place] in _SPACE:
                place += 1
            if place == len(text):
                break
            letter = text[place]
            if self._array in ("[", ",") and letter == "{":
                try:
                    value, end = _DECODER.raw_decode(text, place)
                except ValueError:
                    break  # not complete, or wrong: then it never gets complete
                self._number += 1
                self._array = "{"
                yield _entry(self._number, end - place, lambda one: one, value)
                place = end
            elif (self._array, letter) in _STEPS:
                self._array = _STEPS[self._array, letter]
                place += 1
            else:
                raise invalid("the file", f"is no JSON array of documents, after {self._number} of them")
        self._rest = text[place:].encode() + data[cut:]


# What may follow what: before the array, after "[", after a document, after a comma, after the array.
_STEPS = {("", "["): "[", ("[", "]"): "]", ("{", ","): ",", ("{", "]"): "]"}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _entry(number: int, size: int, read: Any, given: Any) -> Entry:
    try:
        document = read(given)
        if not isinstance(document, dict):
            raise ValueError("no object")
        document = to_bson(document, "document")
        if not isinstance(document, dict):
            raise ValueError("no document, but a single value")
        check_document(document)
    except TaskError as error:
        return Entry(number, None, error.message, size)
    except (ValueError, RecursionError) as error:
        return Entry(number, None, str(error), size)
    return Entry(number, document, "", size)


def _from_json(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise ValueError(f"no JSON: {error}") from None


def _cells(row: bytes) -> list[str]:
    try:
        (cells,) = csv.reader([row.decode().removesuffix("\r")], strict=True)
    except csv.Error as error:
        raise ValueError(f"no CSV: {error}") from None
    return cells


def _csv(cells: Sequence[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().encode()


def _cell(value: Any, form: Form) -> Any:
    made = plain(value, form)
    if isinstance(made, dict) and len(made) == 1:
        ((key, text),) = made.items()
        if key in _TEXTUAL or (key == "$date" and isinstance(text, str)):
            return text
    if made is None:
        return ""
    return made if isinstance(made, str) else msgspec.json.encode(made).decode()
