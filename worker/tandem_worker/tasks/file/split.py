"""`file.concat` and `file.split`; a row is a line, or a CSV record, which may span lines."""

import codecs
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from tandem_worker.archives.compression import compression_of, inflated
from tandem_worker.errors import Permanent
from tandem_worker.jobs.files import MAX_FILES, FileRef
from tandem_worker.jobs.sync import FileWriter, SyncFiles, SyncJob
from tandem_worker.tables.names import format_of, split_name, uncompressed
from tandem_worker.tables.reader import csv_records, is_preamble
from tandem_worker.tables.text import SAMPLE_BYTES, delimiter_of, lines, peek
from tandem_worker.task import task
from tandem_worker.tasks.payload import FILE_EXAMPLE, Payload

RowFormat = Literal["csv", "ndjson"]

# For any encoding that contains ASCII: only quotes, delimiters and line ends matter.
_BYTES = "latin-1"


class ConcatPayload(Payload):
    """What to join. With `header`, each source is CSV with the same header, which is kept once."""

    sources: list[FileRef] = Field(min_length=1, max_length=MAX_FILES)
    header: bool = False


class Joined(TypedDict):
    """The joined file, named like the first source."""

    file: FileRef


@task(
    "file.concat",
    timeout="10m",
    cpu=True,
    example={"sources": [FILE_EXAMPLE, FILE_EXAMPLE], "header": True},
)
def concat(job: SyncJob, payload: ConcatPayload) -> Joined:
    """Join files in the given order, byte by byte; with `header`, CSV files that share a header.

    With `header`, the header is kept once, a missing line end at the end of a source is added, and
    a source with another header fails the job as `header_mismatch`.
    """
    sources = [job.files.stat(source) for source in payload.sources]
    total = sum(source.size or 0 for source in sources)
    job.progress(0, total)
    out = job.files.create("".join(split_name(sources[0])), sources[0].content_type)
    header = ""
    copied = 0
    for number, source in enumerate(sources):
        pieces: Iterator[bytes] = job.files.open(source)
        if payload.header:
            first, name, rest = _cut_header(pieces)
            pieces = rest if header else chain((first,), rest)
            header = header or name
            if name not in ("", header):
                message = f"source {number} has another header than the sources before it"
                raise Permanent("header_mismatch", message)
        last = b"\n"
        for piece in filter(None, pieces):
            out.write(piece)
            last = piece[-1:]
            copied += len(piece)
            job.progress(copied, total)
        if payload.header and last not in b"\r\n":
            out.write(b"\n")
    made = out.commit()
    job.progress(total, total)
    return {"file": made}


def _cut_header(pieces: Iterable[bytes]) -> tuple[bytes, str, Iterator[bytes]]:
    """The bytes up to the end of the header, the header's own text, and the rest."""
    taken: list[bytes] = []
    rest = _one_byte_letters(pieces)

    def recorded() -> Iterator[bytes]:
        for piece in rest:
            taken.append(piece)
            yield piece

    before, header = next(_csv_rows(recorded()), ("", ""))
    first = (before + header).encode(_BYTES)
    return first, header.rstrip("\r\n"), chain((b"".join(taken)[len(first) :],), rest)


def _csv_rows(pieces: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Each CSV record as it stands, after what belongs to no record: a mark, `sep=`, empty lines.

    They are those that `csv_table` finds. Raises Permanent `invalid_file` for broken quotes.
    """
    start, pieces = peek(pieces, SAMPLE_BYTES)
    mark = codecs.BOM_UTF8 if start.startswith(codecs.BOM_UTF8) else b""
    text = start[len(mark) : SAMPLE_BYTES].decode(_BYTES)
    pieces = chain((next(pieces)[len(mark) :],), pieces)
    before = mark.decode(_BYTES)
    width = 0
    for record in csv_records(lines(pieces, _BYTES, newline=""), delimiter_of(text), on_bad="fail"):
        if width == 0 and not is_preamble(record):
            width = len(record.value)
        if width == 1 or (width and record.value):
            yield before, record.text
            before = ""
        else:
            before += record.text
    if before:
        yield before, ""


def _one_byte_letters(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces. Raises Permanent `invalid_file` if line ends have several bytes."""
    start, pieces = peek(pieces, 4)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        message = "the file is UTF-16 or UTF-32: convert it to UTF-8 with file.convert"
        raise Permanent("invalid_file", message)
    return pieces


def _only(name: str) -> dict[str, Any]:
    return {"required": [name], "properties": {name: {"type": "integer"}}}


class SplitPayload(Payload):
    """What to split, and where: after every `rows` rows, or into parts of at most `bytes` bytes.

    `format` says what a row is: a CSV record, which may have line ends in quotes, or with `ndjson`
    a line. Without it, the file's name (`.csv`, `.tsv`) or content type decides, and `header` means
    CSV.
    """

    model_config = ConfigDict(json_schema_extra={"oneOf": [_only("rows"), _only("bytes")]})

    source: FileRef
    rows: int | None = Field(default=None, ge=1)
    bytes: int | None = Field(default=None, ge=1)
    header: bool = Field(
        default=False, description="repeat the first row in each part, and keep rows whole"
    )
    format: RowFormat | None = None

    @model_validator(mode="after")
    def _one_measure(self) -> "SplitPayload":
        if (self.rows is None) == (self.bytes is None):
            raise ValueError("give either rows or bytes")
        return self


class Parted(TypedDict):
    """The parts in order, named `<name>-00001.<extension>` and so on; at most 10,000."""

    files: list[FileRef]


@task(
    "file.split",
    timeout="10m",
    cpu=True,
    example={"source": FILE_EXAMPLE, "rows": 100_000, "header": True},
)
def split(job: SyncJob, payload: SplitPayload) -> Parted:
    """Split a file into parts of a number of rows, or of at most a number of bytes.

    Parts of `bytes` without `header` are cut anywhere; joined, they are the source. All other parts
    have whole rows, and a compressed source is decompressed for them.
    """
    source = job.files.stat(payload.source)
    job.progress(0, source.size)
    if payload.bytes is not None and not payload.header:
        return {"files": _split_bytes(job, source, payload.bytes)}
    return {"files": _split_rows(job, source, payload)}


class _Parts:
    """Writes the parts of one file; each begins with `head`."""

    def __init__(self, files: SyncFiles, source: FileRef, head: bytes = b"") -> None:
        self._files = files
        self._stem, self._extension = split_name(source)
        self._content_type = source.content_type
        self._head = head
        self._out: FileWriter | None = None
        self.finished: list[FileRef] = []

    def write(self, data: bytes | memoryview) -> None:
        if self._out is None:
            name = f"{self._stem}-{len(self.finished) + 1:05d}{self._extension}"
            self._out = self._files.create(name, self._content_type)
            self._out.write(self._head)
        self._out.write(data)

    @property
    def size(self) -> int:
        """Bytes of the part being written."""
        return 0 if self._out is None else self._out.size

    def end(self) -> None:
        """Finish the part; the next write starts another one."""
        if self._out is not None:
            self.finished.append(self._out.commit())
            self._out = None

    def finish(self) -> list[FileRef]:
        """All parts, at least one."""
        if not self.finished and self._out is None:
            self.write(b"")
        self.end()
        return self.finished


def _split_bytes(job: SyncJob, source: FileRef, size: int) -> list[FileRef]:
    """Parts of `size` bytes, the last one shorter; joined they are the source."""
    if (source.size or 0) > size * MAX_FILES:
        raise Permanent("too_large", f"the file would have more than {MAX_FILES} parts")
    parts = _Parts(job.files, source)
    done = 0
    for piece in job.files.open(source):
        rest = memoryview(piece)
        while rest:
            part = rest[: size - parts.size]
            parts.write(part)
            rest = rest[len(part) :]
            if parts.size == size:
                parts.end()
        done += len(piece)
        job.progress(done, source.size)
    return parts.finish()


def _split_rows(job: SyncJob, source: FileRef, payload: SplitPayload) -> list[FileRef]:
    """Parts of `rows` whole rows, or of as many as fit into `bytes`."""

    def stored() -> Iterator[bytes]:
        done = 0
        for piece in job.files.open(source):
            done += len(piece)
            job.progress(done, source.size)
            yield piece

    start, pieces = peek(stored(), 4)
    compression = compression_of(start)
    named = source if compression is None else uncompressed(source)
    rows = _rows(_one_byte_letters(inflated(pieces, compression)), named, payload)
    head = next(rows, b"") if payload.header else b""
    parts = _Parts(job.files, named, head)
    limit = payload.bytes
    count = 0
    for row in rows:
        if limit is not None and parts.size + len(row) > limit:
            parts.end()
            count = 0
        if limit is not None and len(head) + len(row) > limit:
            message = f"a row with its header has more than the {limit} bytes of a part"
            raise Permanent("too_large", message)
        parts.write(row)
        count += 1
        if count == payload.rows:
            parts.end()
            count = 0
    return parts.finish()


def _rows(data: Iterable[bytes], source: FileRef, payload: SplitPayload) -> Iterator[bytes]:
    is_csv = payload.header or format_of(source) == "csv"
    if payload.format == "csv" or (payload.format is None and is_csv):
        return ((before + row).encode(_BYTES) for before, row in _csv_rows(data))
    return (line.encode(_BYTES) for line in lines(data, _BYTES))
