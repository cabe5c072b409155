"""Files of rows, joined and cut without being changed: rows are lines, or CSV records, which may have lines in them."""

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from tandem_worker.archives.compression import compression_of, inflated
from tandem_worker.errors import Permanent
from tandem_worker.jobs.files import MAX_FILES, FileRef
from tandem_worker.jobs.sync import SyncFiles, SyncJob, Writer
from tandem_worker.tables.text import (
    SAMPLE,
    Progress,
    Rows,
    as_file,
    delimiter_of,
    file_name,
    is_csv,
    lines,
    records,
)
from tandem_worker.tables.writers import bare
from tandem_worker.task import task
from tandem_worker.tasks.file.payloads import EXAMPLE

PIECE = 256 << 10  # bytes that are copied at once
_BOM = b"\xef\xbb\xbf"


def _refuse_wide(start: bytes) -> None:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Permanent("invalid_file", "it is UTF-16: convert it first, with file.convert")


# ------------------------------------------------------------------------------------------ joining


def _join(files: SyncFiles, sources: list[FileRef], *, header: bool, progress: Progress) -> FileRef:
    """Join the sources (as `stat` gives them) in their order, under the first one's name.

    With `header` each of them starts with the same CSV record, which is kept once, and each ends
    with a line's end.
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
                raise Permanent(
                    "header_mismatch", f"source {number} has another header than those before it"
                )
        last = b"\n"
        while piece := file.read(PIECE):
            out.write(piece)
            last = piece[-1:]
            done += len(piece)
            progress(done)
        if header and last != b"\n":
            out.write(b"\n")
    return out.commit()


# ------------------------------------------------------------------------------------------ cutting


class Parts:
    """Writes the parts of one file: `<name>-00001.<ending>` and so on."""

    def __init__(
        self, files: SyncFiles, name: tuple[str, str], content_type: str | None, head: bytes = b""
    ) -> None:
        self._files = files
        self._name = name
        self._content_type = content_type
        self._head = head
        self._out: Writer | None = None
        self.made: list[FileRef] = []

    def write(self, data: bytes) -> None:
        if self._out is None:
            stem, ending = self._name
            self._out = self._files.create(
                f"{stem}-{len(self.made) + 1:05d}{ending}", self._content_type
            )
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


def _split_bytes(files: SyncFiles, source: FileRef, size: int, progress: Progress) -> list[FileRef]:
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


def _split_rows(
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
            raise Permanent(
                "too_large", f"a row with its header has more than the {size} bytes of a part"
            )
        parts.write(row)
        count += 1
        if count == rows:
            parts.end()
            count = 0
    if not parts.made and not parts.size:
        parts.write(b"")
    parts.end()
    return parts.made


class ConcatPayload(BaseModel):
    """What to join. `header`: each source is CSV that starts with the same header, which the result has once."""

    model_config = ConfigDict(extra="forbid")

    sources: list[FileRef] = Field(min_length=1, max_length=MAX_FILES)
    header: bool = False


class Joined(TypedDict):
    """The file, called as the first source is."""

    file: FileRef


@task(
    "file.concat", timeout="10m", cpu=True, example={"sources": [EXAMPLE, EXAMPLE], "header": True}
)
def concat(job: SyncJob, payload: ConcatPayload) -> Joined:
    """Join files in their order, byte by byte; with `header`, CSV files whose common header is kept once.

    With `header` a source that does not end with a line's end gets one, and another header fails as
    `header_mismatch`.
    """
    sources = [job.files.stat(source) for source in payload.sources]
    total = sum(source.size or 0 for source in sources)
    job.progress(0, total)
    made = _join(
        job.files, sources, header=payload.header, progress=lambda done: job.progress(done, total)
    )
    job.progress(total, total)
    return {"file": made}


def _only(name: str) -> dict[str, Any]:
    return {"required": [name], "properties": {name: {"type": "integer"}}}


class SplitPayload(BaseModel):
    """What to cut, and where: after so many `rows`, or so that no part has more than so many `bytes`.

    `format` says what a row is: a CSV record (which may have line ends in quotes) or, with
    `ndjson`, a line. Without it the file's name (`.csv`, `.tsv`) or content type tells, and
    `header` means CSV.
    """

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"oneOf": [_only("rows"), _only("bytes")]}
    )

    source: FileRef
    rows: int | None = Field(default=None, ge=1)
    bytes: int | None = Field(default=None, ge=1)
    header: bool = Field(
        default=False,
        description="the first row stands in each part, and parts end with whole rows",
    )
    format: Rows | None = None

    @model_validator(mode="after")
    def _one_measure(self) -> "SplitPayload":
        if (self.rows is None) == (self.bytes is None):
            raise ValueError("give one of rows and bytes")
        return self


class Parted(TypedDict):
    """The parts in their order, called `<name>-00001.<ending>` and so on; at most 10,000."""

    files: list[FileRef]


@task(
    "file.split",
    timeout="10m",
    cpu=True,
    example={"source": EXAMPLE, "rows": 100_000, "header": True},
)
def split(job: SyncJob, payload: SplitPayload) -> Parted:
    """Cut a file into parts of so many rows, or of at most so many bytes.

    Parts of `bytes` without `header` are cut anywhere; joined they are the source. All others have
    whole rows, and a compressed source is inflated for them.
    """
    source = job.files.stat(payload.source)
    job.progress(0, source.size)

    def progress(done: int) -> None:
        job.progress(done, source.size)

    if payload.bytes is not None and not payload.header:
        return {"files": _split_bytes(job.files, source, payload.bytes, progress)}
    parts = _split_rows(
        job.files,
        source,
        rows=payload.rows,
        size=payload.bytes,
        header=payload.header,
        format=payload.format,
        progress=progress,
    )
    return {"files": parts}
