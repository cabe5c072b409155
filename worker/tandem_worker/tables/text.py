"""Text files line by line: decoding, delimiters, records of CSV and NDJSON."""

import csv
import io
from collections.abc import Callable, Generator, Iterator
from typing import Any, Literal

from tandem_worker.archives.names import entry_names
from tandem_worker.errors import Permanent
from tandem_worker.jobs.files import FileRef

Progress = Callable[[int], None]  # told how many bytes of the sources were read so far


Rows = Literal["csv", "ndjson"]


MAX_ROW = 16 << 20  # bytes


SAMPLE = 64 << 10  # bytes that tell the delimiter


DELIMITERS = ",;\t|"


class _Pieces(io.RawIOBase):
    """Pieces as a file that is read once, front to back."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def as_file(pieces: Iterator[bytes]) -> io.BufferedReader:
    """The pieces as a file that is read once, front to back; `peek` gives its start."""
    return io.BufferedReader(_Pieces(pieces), SAMPLE)


def lines(file: io.BufferedReader) -> Generator[bytes, None, None]:
    """The file's lines, each with its end. Raises Permanent `too_large` for one above MAX_ROW."""
    while line := file.readline(MAX_ROW + 1):
        if len(line) > MAX_ROW:
            raise Permanent("too_large", f"a row has more than {MAX_ROW} bytes")
        yield line


def records(file: io.BufferedReader, delimiter: str) -> Generator[bytes, None, None]:
    """The file's CSV records as they stand, each with its end and with the empty lines before it."""
    csv.field_size_limit(MAX_ROW)
    taken: list[bytes] = []

    def texts() -> Iterator[str]:
        for line in lines(file):
            taken.append(line)
            # Any encoding that has ASCII in it: only quotes, delimiters and line ends count.
            yield line.decode("latin-1")

    try:
        for fields in csv.reader(texts(), delimiter=delimiter):
            if fields:
                yield b"".join(taken)
                taken.clear()
    except csv.Error as error:
        raise Permanent("invalid_file", f"its CSV cannot be read: {error}") from None
    if taken:
        yield b"".join(taken)


def delimiter_of(sample: str) -> str:
    """The delimiter of CSV that starts so: the one that cuts the most of its rows into as many fields as its first."""
    best, most = ",", (0.0, 0)
    start = sample.splitlines(keepends=True)[:-1] or [sample]
    for delimiter in DELIMITERS:
        try:
            rows = [len(fields) for fields in csv.reader(start, delimiter=delimiter) if fields]
        except csv.Error:
            continue
        if rows and rows[0] > 1:
            score = (sum(row == rows[0] for row in rows) / len(rows), rows[0])
            if score > most:
                best, most = delimiter, score
    return best


def file_name(source: FileRef) -> tuple[str, str]:
    """What the file is called, without directories: the stem, and the ending with its dot."""
    name = entry_names([source])[0].rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    return (stem, dot + ending) if stem else (name, "")


def is_csv(source: FileRef) -> bool:
    """Whether the file's name or content type says that it is CSV."""
    return file_name(source)[1].lower() in (".csv", ".tsv") or (
        source.content_type or ""
    ).startswith("text/csv")
