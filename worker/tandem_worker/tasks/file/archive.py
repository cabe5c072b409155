"""`file.archive` and `file.extract`."""

from pydantic import Field
from typing_extensions import TypedDict

from tandem_worker.archives.names import ArchiveFormat
from tandem_worker.archives.pack import pack
from tandem_worker.archives.unpack import unpack
from tandem_worker.jobs.files import MAX_FILES, FileRef
from tandem_worker.jobs.sync import SyncJob
from tandem_worker.task import task
from tandem_worker.tasks.payload import FILE_EXAMPLE, Payload


class ArchivePayload(Payload):
    """What to pack. Entries have the files' names; a second file of the same name is `name-2`."""

    sources: list[FileRef] = Field(min_length=1, max_length=MAX_FILES)
    format: ArchiveFormat


class Archived(TypedDict):
    """The archive, `archive.<format>`, and the number of its entries."""

    file: FileRef
    entries: int


@task(
    "file.archive", timeout="10m", cpu=True, example={"sources": [FILE_EXAMPLE], "format": "tar.gz"}
)
def archive(job: SyncJob, payload: ArchivePayload) -> Archived:
    """Pack files into a zip or tar archive. The same files give the same bytes."""
    sources = [job.files.stat(source) for source in payload.sources]
    return {"file": pack(job, sources, payload.format), "entries": len(sources)}


class ExtractPayload(Payload):
    """What to unpack, and limits for it; `max_bytes` counts the unpacked files."""

    source: FileRef
    max_entries: int = Field(default=10_000, ge=1, le=MAX_FILES)
    max_bytes: int = Field(default=1 << 30, ge=1)


class Extracted(TypedDict):
    """The archive's files under their names in it, without directories."""

    files: list[FileRef]


@task("file.extract", timeout="10m", cpu=True, example={"source": FILE_EXAMPLE, "max_entries": 100})
def extract(job: SyncJob, payload: ExtractPayload) -> Extracted:
    """Unpack a zip or a tar (plain, gzip or Zstandard), detected by content: all of it or nothing.

    Links, devices, absolute and parent paths, names that appear twice or clash, and names more than
    32 directories deep fail as `unsafe_archive`; too many entries or bytes, or more than 200 times
    the archive's size (16 MiB are always allowed), as `too_large`; damaged or encrypted archives as
    `invalid_archive`.
    """
    source = job.files.stat(payload.source)
    limits = {"max_entries": payload.max_entries, "max_bytes": payload.max_bytes}
    return {"files": list(unpack(job, source, **limits))}
