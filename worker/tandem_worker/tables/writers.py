"""Tables as they are written: CSV, NDJSON, a JSON array, Parquet; batch by batch into whatever takes bytes.

The one writer of `file.convert`, `sql.export` and `mongo.export`. CSV is that of PostgreSQL's COPY:
UTF-8, commas, line feeds, quotes only where needed, `""` for an empty text and nothing for a null.
Everything here computes: call it in a thread or a process. A text that is no Unicode raises
UnicodeError.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from tandem_worker.archives.compression import Compression, Deflating, Sink
from tandem_worker.jobs.files import FileRef
from tandem_worker.tables.table import Batch, Columns, Format, Output

_COMPRESSED = re.compile(r"\.(gz|gzip|zst|zstd)$", re.IGNORECASE)
_READ: dict[str, Format] = {
    "csv": "csv", "tsv": "csv", "ndjson": "ndjson", "jsonl": "ndjson", "x-ndjson": "ndjson", "json": "json",
    "parquet": "parquet", "vnd.apache.parquet": "parquet",
}  # fmt: skip
_ENDINGS: dict[Compression | None, str] = {None: "", "gzip": ".gz", "zstd": ".zst"}
_TYPES: dict[Format, str] = {
    "csv": "text/csv",
    "ndjson": "application/x-ndjson",
    "json": "application/json",
    "parquet": "application/vnd.apache.parquet",
}


def outside(format: Format, compression: Compression | None) -> Compression | None:
    """How the file as a whole is compressed: Parquet compresses inside."""
    return None if format == "parquet" else compression


def file_name(stem: str, format: Format, compression: Compression | None) -> tuple[str, str]:
    """Name and content type of a table that is written."""
    packed = outside(format, compression)
    return f"{stem}.{format}{_ENDINGS[packed]}", _TYPES[
        format
    ] if packed is None else f"application/{packed}"


def bare(name: str) -> str:
    """The name without a compression's ending."""
    return _COMPRESSED.sub("", name)


def format_of(source: FileRef) -> Format | None:
    """The format that the file's name or content type says, if any."""
    ending = bare(source.name or "").rpartition(".")[2].lower()
    kind = (source.content_type or "").partition(";")[0].strip().lower().rpartition("/")[2]
    return _READ.get(ending) or _READ.get(kind)


def open_output(
    sink: Sink, format: Format, compression: Compression | None, columns: Columns
) -> Output:
    """The output of a format; compressed as a whole, but Parquet inside (Zstandard unless said)."""
    if format == "parquet":
        from tandem_worker.tables.parquet import ParquetOutput, schema  # noqa: PLC0415 - Arrow is large, and most jobs need none

        return ParquetOutput(sink, schema(columns), compression, columns.text)
    out = Deflating(sink, compression)
    return (
        CsvOutput(out, columns)
        if format == "csv"
        else JsonOutput(out, columns.names, array=format == "json")
    )


class CsvOutput:
    """CSV, see above; without columns there is not even a header."""

    def __init__(self, out: Deflating, columns: Columns) -> None:
        self._out = out
        self._text = columns.text
        if columns.names:
            self._out.write((",".join(map(self._cell, columns.names)) + "\n").encode())

    def write(self, batch: Batch) -> None:
        rows = zip(*(map(self._cell, column) for column in batch.columns), strict=True)
        self._out.write("".join([",".join(row) + "\n" for row in rows]).encode())

    def end(self) -> None:
        self._out.finish()

    def _cell(self, value: Any) -> str:
        if value is None:
            return ""
        kind = type(value)
        if kind is int:
            return str(value)
        cell = value if kind is str else self._text(value)
        return '"' + cell.replace('"', '""') + '"' if _quoted(cell) else cell


def _quoted(cell: str) -> bool:
    # A regular expression takes five times as long.
    if '"' in cell or "," in cell or "\n" in cell or "\r" in cell:
        return True
    return cell in ("", "\\.") or cell[0] == " " or cell[-1] == " "


class JsonOutput:
    """NDJSON, or an array with one row a line."""

    def __init__(self, out: Deflating, names: Sequence[str] = (), *, array: bool) -> None:
        self._out = out
        self._names = names
        self._array = array
        self._begun = False

    def write(self, batch: Batch) -> None:
        names = self._names
        rows = [dict(zip(names, row, strict=True)) for row in zip(*batch.columns, strict=True)] or [
            {}
        ] * batch.rows
        self.add(map(msgspec.json.encode, rows))

    def add(self, items: Iterable[bytes]) -> None:
        """The same for rows that are JSON already, or for any values."""
        if not self._array:
            self._out.write(b"".join([item + b"\n" for item in items]))
        elif data := b",\n".join(items):
            self._out.write((b",\n" if self._begun else b"[\n") + data)
            self._begun = True

    def end(self) -> None:
        if self._array:
            self._out.write(b"\n]\n" if self._begun else b"[]\n")
        self._out.finish()


class Buffer:
    """A sink that is emptied by `take`."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.size = 0  # bytes that wait

    def write(self, data: bytes, /) -> int:
        self._parts.append(data)
        self.size += len(data)
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        self.size = 0
        return data
