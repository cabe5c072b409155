"""Writes zip and tar archives as streams."""

import stat
import tarfile
import zipfile
from collections.abc import Callable, Generator
from contextlib import closing
from typing import IO, cast

from tandem_worker.archives.compression import ByteSink, Deflating
from tandem_worker.archives.names import ArchiveFormat, entry_names
from tandem_worker.archives.pieces import PieceReader
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.sync import SyncJob

EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date in zip: the same files give the same archive
_CONTENT_TYPES: dict[ArchiveFormat, str] = {
    "zip": "application/zip",
    "tar": "application/x-tar",
    "tar.gz": "application/gzip",
    "tar.zst": "application/zstd",
}

Entries = list[tuple[str, FileRef]]  # by their names in the archive
ReadFile = Callable[[FileRef], Generator[bytes, None, None]]


def pack(job: SyncJob, sources: list[FileRef], format: ArchiveFormat) -> FileRef:
    """Write the sources (as `stat` returns them) to `archive.<format>`."""
    total = sum(source.size or 0 for source in sources)
    done = 0
    job.progress(0, total)

    def read(source: FileRef) -> Generator[bytes, None, None]:
        nonlocal done
        for piece in job.files.open(source):
            done += len(piece)
            job.progress(done, total)
            yield piece

    out = job.files.create(f"archive.{format}", _CONTENT_TYPES[format])
    entries = list(zip(entry_names(sources), sources, strict=True))
    if format == "zip":
        _pack_zip(entries, read, out)
    elif format == "tar":
        _pack_tar(entries, read, out)
    else:
        deflating = Deflating(out, "gzip" if format == "tar.gz" else "zstd")
        _pack_tar(entries, read, deflating)
        deflating.finish()
    return out.commit()


def _pack_zip(entries: Entries, read: ReadFile, out: ByteSink) -> None:
    # A sink has no `seek` and `tell`, so zipfile writes the sizes behind each entry.
    with zipfile.ZipFile(cast("IO[bytes]", out), "w") as archive:
        for name, source in entries:
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.file_size = source.size or 0
            with archive.open(entry, "w") as place:
                for piece in read(source):
                    place.write(piece)


def _pack_tar(entries: Entries, read: ReadFile, out: ByteSink) -> None:
    file = cast("IO[bytes]", out)
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name, source in entries:
            entry = tarfile.TarInfo(name)
            entry.size = source.size or 0
            with closing(read(source)) as pieces:
                archive.addfile(entry, cast("IO[bytes]", PieceReader(pieces)))
