"""Files of rows, joined and cut without being changed: rows are lines, or CSV records, which may have lines in them."""

import csv
import io
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Literal

from tandem_worker.archives import entry_names
from tandem_worker.compression import compression_of, inflated
from tandem_worker.errors import Permanent
from tandem_worker.files import MAX_FILES, FileRef
from tandem_worker.formats import bare
from tandem_worker.sync import SyncFiles, Writer

Progress = Callable[[int], None]  # told how many bytes of the sources were read so far
Rows = Literal["csv", "ndjson"]

PIECE = 256 << 10  # bytes that are copied at once
MAX_ROW = 16 << 20  # bytes
SAMPLE = 64 << 10  # bytes that tell the delimiter
DELIMITERS = ",;\t|"
_BOM = b"\xef\xbb\xbf"


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
    return file_name(source)[1].lower() in (".csv", ".tsv") or (source.content_type or "").startswith("text/csv")


def _refuse_wide(start: bytes) -> None:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Permanent("invalid_file", "it is UTF-16: convert it first, with file.convert")


# ------------------------------------------------------------------------------------------------------------ joining


def concat(files: SyncFiles, sources: list[FileRef], *, header: bool, progress: Progress) -> FileRef:
    """Join the sources (as `stat` gives them) in their order, under the first one's name.

    With `header` each of them starts with the same CSV record, which is kept once, and each ends with a line's end.
    """
    stem, ending = file_name(sources[0])
    out = files.create(f"{stem}{ending}", sources[0].content_type)
    first: bytes | None = None
    done = 0
    for number, source in enumerate(sources):
        file = as_file(files.open(source))
        if header and file.peek(1):
            _refuse_wide(file.peek(4))
            delimiter = delimiter_of(file.peek(SAMPLE).decode("latin-1"))
            head = next(records(file, delimiter))
            plain = head.removeprefix(_BOM).rstrip(b"\r\n")
            if first is None:
                first = plain
                out.write(head)
            elif plain != first:
                raise Permanent("header_mismatch", f"source {number} has another header than those before it")
        last = b"\n"
        while piece := file.read(PIECE):
            out.write(piece)
            last = piece[-1:]
            done += len(piece)
            progress(done)
        if header and last != b"\n":
            out.write(b"\n")
    return out.commit()


# ------------------------------------------------------------------------------------------------------------ cutting


class Parts:
    """Writes the parts of one file: `<name>-00001.<ending>` and so on."""

    def __init__(self, files: SyncFiles, name: tuple[str, str], content_type: str | None, head: bytes = b"") -> None:
        self._files = files
        self._name = name
        self._content_type = content_type
        self._head = head
        self._out: Writer | None = None
        self.made: list[FileRef] = []

    def write(self, data: bytes) -> None:
        if self._out is None:
            stem, ending = self._name
            self._out = self._files.create(f"{stem}-{len(self.made) + 1:05d}{ending}", self._content_type)
            self._out.write(self._head)
        self._out.write(data)

    @property
    def size(self) -> int:
        """Bytes of the part that is being written."""
        return 0 if self._out is None else self._out.size

    def end(self) -> None:
        """The part is whole; what is written next begins another one."""
        if self._out is not None:
            self.made.append(self._out.commit())
            self._out = None


def split_bytes(files: SyncFiles, source: FileRef, size: int, progress: Progress) -> list[FileRef]:
    """Parts of `size` bytes, the last one shorter; joined they are the source."""
    if (source.size or 0) > size * MAX_FILES:
        raise Permanent("too_large", f"a job produces at most {MAX_FILES} files")
    parts = Parts(files, file_name(source), source.content_type)
    file = as_file(files.open(source))
    done = 0
    while piece := file.read(min(PIECE, size - parts.size)):
        parts.write(piece)
        done += len(piece)
        progress(done)
        if parts.size == size:
            parts.end()
    if not done:
        parts.write(b"")
    parts.end()
    return parts.made


def split_rows(
    files: SyncFiles,
    source: FileRef,
    *,
    rows: int | None,
    size: int | None,
    header: bool,
    format: Rows | None,
    progress: Progress,
) -> list[FileRef]:
    """Parts of `rows` rows, or of as many whole rows as fit into `size` bytes; `header` puts the first into each.

    A source in gzip or Zstandard is inflated.
    """

    def counted(pieces: Iterable[bytes]) -> Iterator[bytes]:
        done = 0
        for piece in pieces:
            done += len(piece)
            progress(done)
            yield piece

    start = as_file(files.open(source)).peek(4)
    compression = compression_of(start)
    _refuse_wide(start)
    if compression is not None:
        source = source.model_copy(update={"name": bare(source.name or ""), "content_type": None})
    file = as_file(inflated(counted(files.open(source)), compression))
    if format == "csv" or (format is None and (header or is_csv(source))):
        found = records(file, delimiter_of(file.peek(SAMPLE).decode("latin-1")))
    else:
        found = lines(file)
    head = next(found, b"") if header else b""
    parts = Parts(files, file_name(source), source.content_type, head)
    count = 0
    for row in found:
        if size is not None and parts.size + len(row) > size:
            parts.end()
            count = 0
        if size is not None and len(head) + len(row) > size:
            raise Permanent("too_large", f"a row with its header has more than the {size} bytes of a part")
        parts.write(row)
        count += 1
        if count == rows:
            parts.end()
            count = 0
    if not parts.made and not parts.size:
        parts.write(b"")
    parts.end()
    return parts.made
