"""Files: `file.hash`, `file.archive`, `file.extract`. What computes much runs in the process pool."""

import asyncio
import hashlib
from typing import Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from worker import archives
from worker.files import MAX_FILES, FileRef
from worker.job import Job
from worker.sync import SyncJob
from worker.task import task

EXAMPLE = {"file": "01JC8XW3T4Z5PC3V8M2G7QK9RN4HDA"}

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
    async for piece in job.files.open(payload.source):
        # A piece is about 1 MiB: in a thread, since all algorithms together may take milliseconds for it.
        await asyncio.to_thread(update, piece)
        done += len(piece)
        await job.progress(done, total)
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
