"""`file.archive` and `file.extract`."""

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from tandem_worker.archives import unpack
from tandem_worker.archives.names import Format
from tandem_worker.archives.pack import pack
from tandem_worker.jobs.files import MAX_FILES, FileRef
from tandem_worker.jobs.sync import SyncJob
from tandem_worker.task import task
from tandem_worker.tasks.file.payloads import EXAMPLE


class ArchivePayload(BaseModel):
    """What to pack, and how. Entries are called as the files are; of two files of one name the second is `name-2`."""

    model_config = ConfigDict(extra="forbid")

    sources: list[FileRef] = Field(min_length=1, max_length=MAX_FILES)
    format: Format


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
    made = pack(job.files, sources, payload.format, lambda done: job.progress(done, total))
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

    Links, devices, absolute and parent paths, names that stand in it twice or clash, and names more
    than 32 directories deep fail as `unsafe_archive`; too many entries or bytes, or more than 200
    times the archive's size (16 MiB are always allowed), as `too_large`; damaged or encrypted ones
    as `invalid_archive`.
    """
    source = job.files.stat(payload.source)
    job.progress(0, source.size)
    found = unpack.unpack(
        job.files,
        source,
        max_entries=payload.max_entries,
        max_bytes=payload.max_bytes,
        progress=lambda done: job.progress(done, source.size),
    )
    return {"files": list(found)}
