"""Files: hashed, packed and unpacked, joined and cut. What computes much runs in the process pool."""

import asyncio
import hashlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from typing_extensions import TypedDict

from tandem_worker import archives, lines
from tandem_worker.compression import Compression
from tandem_worker.files import MAX_FILES, FileRef
from tandem_worker.formats import Format
from tandem_worker.job import Job
from tandem_worker.sources import check_encoding, recognise
from tandem_worker.sync import SyncJob
from tandem_worker.task import task

EXAMPLE = {"file": "01JC8XW3T4Z5PC3V8M2G7QK9RN4HDA"}

HASHED_AHEAD = 4  # pieces that wait for the thread that hashes

Algorithm = Literal[
    "sha256", "sha1", "sha224", "sha384", "sha512", "sha3_256", "sha3_512", "blake2b", "blake2s", "md5"
]  # fmt: skip


class HashPayload(BaseModel):
    """What to hash, and how."""

    model_config = ConfigDict(extra="forbid")

    source: FileRef
    algorithms: list[Algorithm] = Field(default=["sha256"], min_length=1, max_length=32)


class Digests(TypedDict):
    """The file's size in bytes and the digests that were asked for, hexadecimal."""

    size: int
    sha256: NotRequired[str]
    sha1: NotRequired[str]
    sha224: NotRequired[str]
    sha384: NotRequired[str]
    sha512: NotRequired[str]
    sha3_256: NotRequired[str]
    sha3_512: NotRequired[str]
    blake2b: NotRequired[str]
    blake2s: NotRequired[str]
    md5: NotRequired[str]


@task(
    "file.hash",
    timeout="10m",
    example={"source": EXAMPLE, "algorithms": ["sha256", "md5"]},
)
async def hash_file(job: Job, payload: HashPayload) -> Digests:
    """Hash an uploaded or produced file: its size in bytes and one hexadecimal digest per algorithm."""
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in dict.fromkeys(payload.algorithms)}

    def update(piece: bytes) -> None:
        for digest in digests.values():
            digest.update(piece)

    total = (await job.files.stat(payload.source)).size
    done = 0
    await job.progress(0, total)
    # A thread of its own, since all algorithms together may take milliseconds for a piece of about 1 MiB. The next ones
    # are read meanwhile, so that it always has something to do.
    thread = ThreadPoolExecutor(1, thread_name_prefix="hash")
    pieces: deque[asyncio.Future[None]] = deque()
    try:
        async for piece in job.files.open(payload.source):
            if len(pieces) == HASHED_AHEAD:
                await pieces.popleft()
            pieces.append(asyncio.get_running_loop().run_in_executor(thread, update, piece))
            done += len(piece)
            await job.progress(done, total)
        while pieces:
            await pieces.popleft()
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
    result: Digests = {"size": done}
    for name, digest in digests.items():
        result[name] = digest.hexdigest()
    return result


class ArchivePayload(BaseModel):
    """What to pack, and how. Entries are called as the files are; of two files of one name the second is `name-2`."""

    model_config = ConfigDict(extra="forbid")

    sources: list[FileRef] = Field(min_length=1, max_length=MAX_FILES)
    format: archives.Format


class Archived(TypedDict):
    """The archive, called `archive.<format>`, and the number of its entries."""

    file: FileRef
    entries: int


@task("file.archive", timeout="10m", cpu=True, example={"sources": [EXAMPLE], "format": "tar.gz"})
def archive(job: SyncJob, payload: ArchivePayload) -> Archived:
    """Pack files into a zip or tar archive. The same files give the same bytes."""
    sources = [job.files.stat(source) for source in payload.sources]
    total = sum(source.size or 0 for source in sources)
    job.progress(0, total)
    made = archives.pack(job.files, sources, payload.format, lambda done: job.progress(done, total))
    return {"file": made, "entries": len(sources)}


class ExtractPayload(BaseModel):
    """What to unpack, and how much of it at most: `max_bytes` are those of the files that come out."""

    model_config = ConfigDict(extra="forbid")

    source: FileRef
    max_entries: int = Field(default=10_000, ge=1, le=MAX_FILES)
    max_bytes: int = Field(default=1 << 30, ge=1)


class Extracted(TypedDict):
    """The archive's files, called as they are in it; its directories are left out."""

    files: list[FileRef]


@task("file.extract", timeout="10m", cpu=True, example={"source": EXAMPLE, "max_entries": 100})
def extract(job: SyncJob, payload: ExtractPayload) -> Extracted:
    """Unpack a zip or a tar (bare, gzip or Zstandard), which its content tells. All of it or nothing.

    Links, devices, absolute and parent paths, names that stand in it twice or clash, and names more than 32 directories
    deep fail as `unsafe_archive`; too many entries or bytes, or more than 200 times the archive's size (16 MiB are
    always allowed), as `too_large`; damaged or encrypted ones as `invalid_archive`.
    """
    source = job.files.stat(payload.source)
    job.progress(0, source.size)
    found = archives.unpack(
        job.files,
        source,
        max_entries=payload.max_entries,
        max_bytes=payload.max_bytes,
        progress=lambda done: job.progress(done, source.size),
    )
    return {"files": list(found)}


class ConcatPayload(BaseModel):
    """What to join. `header`: each source is CSV that starts with the same header, which the result has once."""

    model_config = ConfigDict(extra="forbid")

    sources: list[FileRef] = Field(min_length=1, max_length=MAX_FILES)
    header: bool = False


class Joined(TypedDict):
    """The file, called as the first source is."""

    file: FileRef


@task("file.concat", timeout="10m", cpu=True, example={"sources": [EXAMPLE, EXAMPLE], "header": True})
def concat(job: SyncJob, payload: ConcatPayload) -> Joined:
    """Join files in their order, byte by byte; with `header`, CSV files whose common header is kept once.

    With `header` a source that does not end with a line's end gets one, and another header fails as `header_mismatch`.
    """
    sources = [job.files.stat(source) for source in payload.sources]
    total = sum(source.size or 0 for source in sources)
    job.progress(0, total)
    made = lines.concat(job.files, sources, header=payload.header, progress=lambda done: job.progress(done, total))
    job.progress(total, total)
    return {"file": made}


def _only(name: str) -> dict[str, Any]:
    return {"required": [name], "properties": {name: {"type": "integer"}}}


class SplitPayload(BaseModel):
    """What to cut, and where: after so many `rows`, or so that no part has more than so many `bytes`.

    `format` says what a row is: a CSV record (which may have line ends in quotes) or, with `ndjson`, a line. Without it
    the file's name (`.csv`, `.tsv`) or content type tells, and `header` means CSV.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra={"oneOf": [_only("rows"), _only("bytes")]})

    source: FileRef
    rows: int | None = Field(default=None, ge=1)
    bytes: int | None = Field(default=None, ge=1)
    header: bool = Field(default=False, description="the first row stands in each part, and parts end with whole rows")
    format: lines.Rows | None = None

    @model_validator(mode="after")
    def _one_measure(self) -> "SplitPayload":
        if (self.rows is None) == (self.bytes is None):
            raise ValueError("give one of rows and bytes")
        return self


class Parted(TypedDict):
    """The parts in their order, called `<name>-00001.<ending>` and so on; at most 10,000."""

    files: list[FileRef]


@task("file.split", timeout="10m", cpu=True, example={"source": EXAMPLE, "rows": 100_000, "header": True})
def split(job: SyncJob, payload: SplitPayload) -> Parted:
    """Cut a file into parts of so many rows, or of at most so many bytes.

    Parts of `bytes` without `header` are cut anywhere; joined they are the source. All others have whole rows, and a
    compressed source is inflated for them.
    """
    source = job.files.stat(payload.source)
    job.progress(0, source.size)

    def progress(done: int) -> None:
        job.progress(done, source.size)

    if payload.bytes is not None and not payload.header:
        return {"files": lines.split_bytes(job.files, source, payload.bytes, progress)}
    parts = lines.split_rows(
        job.files,
        source,
        rows=payload.rows,
        size=payload.bytes,
        header=payload.header,
        format=payload.format,
        progress=progress,
    )
    return {"files": parts}


class ConvertPayload(BaseModel):
    """What to convert. What is not said of the source (`from`, `delimiter`, `encoding`), its name and start tell."""

    model_config = ConfigDict(extra="forbid")

    source: FileRef
    from_: Format | None = Field(default=None, alias="from", description="the source's format")
    to: Format
    compression: Compression | None = Field(default=None, description="of the result; inside of the file for Parquet")
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=1, pattern=r'^[^"\r\n\x00]$', description="of CSV"
    )
    encoding: str | None = Field(default=None, min_length=1, max_length=40, description="of CSV and JSON: latin-1, …")

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        return None if name is None else check_encoding(name)


class Converted(TypedDict):
    """The file, called as the source is, with the ending of its format, and the number of its rows."""

    file: FileRef
    row_count: int


@task("file.convert", timeout="10m", cpu=True, example={"source": EXAMPLE, "to": "parquet"})
def convert(job: SyncJob, payload: ConvertPayload) -> Converted:
    """Convert a table between CSV, NDJSON, a JSON array and Parquet. A source in gzip or Zstandard is inflated.

    CSV has a header, and is written in UTF-8 with commas. Its columns become integers, numbers or booleans where every
    field of the whole file is one, with nulls for empty fields, and text otherwise; numbers that would not keep their
    digits (007) stay text. In CSV and Parquet, objects and arrays are JSON text. JSON to JSON leaves values as they
    are. What is not what it is said to be fails as `invalid_file`.
    """
    from tandem_worker import tables  # noqa: PLC0415 - Arrow is large, and only this task needs it

    source = job.files.stat(payload.source)
    total = source.size or 0
    twice = False

    def progress(done: int) -> None:
        job.progress(done / 2 if twice else done, total)

    job.progress(0, total)
    found = recognise(
        job.files,
        source,
        payload.from_,
        delimiter=payload.delimiter,
        encoding=payload.encoding,
        progress=progress,
    )
    twice = tables.passes(found.format, payload.to) == 2
    made = tables.convert(job.files, found, payload.to, payload.compression)
    job.progress(total, total)
    return {"file": made.file, "row_count": made.row_count}
