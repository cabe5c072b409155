"""Writes zip and tar archives as streams."""

import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import IO, cast

from tandem_worker.archives.compression import Deflating, Sink
from tandem_worker.archives.names import Format, Progress, entry_names
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.sync import SyncFiles

EPOCH = (1980, 1, 1, 0, 0, 0)  # zip knows no earlier; the same sources give the same archive


_TYPES: dict[Format, str] = {
    "zip": "application/zip",
    "tar": "application/x-tar",
    "tar.gz": "application/gzip",
    "tar.zst": "application/zstd",
}


def pack(files: SyncFiles, sources: list[FileRef], format: Format, progress: Progress) -> FileRef:
    """Write the sources (as `stat` gives them) into `archive.<format>`."""
    out = files.create(f"archive.{format}", _TYPES[format])
    entries = list(zip(entry_names(sources), sources, strict=True))
    if format == "zip":
        _pack_zip(files, entries, out, progress)
    elif format == "tar":
        _pack_tar(files, entries, out, progress)
    else:
        deflating = Deflating(out, "gzip" if format == "tar.gz" else "zstd")
        _pack_tar(files, entries, deflating, progress)
        deflating.finish()
    return out.commit()


def _pack_zip(
    files: SyncFiles, entries: list[tuple[str, FileRef]], out: Sink, progress: Progress
) -> None:
    done = 0
    # Without `seek` and `tell` the sizes are written behind each entry.
    with zipfile.ZipFile(cast("IO[bytes]", out), "w") as archive:
        for name, source in entries:
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.file_size = source.size or 0
            with archive.open(entry, "w") as place:
                for piece in files.open(source):
                    place.write(piece)
                    done += len(piece)
                    progress(done)


def _pack_tar(
    files: SyncFiles, entries: list[tuple[str, FileRef]], out: Sink, progress: Progress
) -> None:
    done = 0
    with tarfile.open(
        fileobj=cast("IO[bytes]", out), mode="w|", format=tarfile.PAX_FORMAT
    ) as archive:
        for name, source in entries:
            entry = tarfile.TarInfo(name)
            entry.size = source.size or 0
            with closing(files.open(source)) as pieces:
                archive.addfile(
                    entry, cast("IO[bytes]", _Stream(pieces, partial(_add, progress, done)))
                )
            done += entry.size


def _add(progress: Progress, before: int, count: int) -> None:
    progress(before + count)


class _Stream:
    """Pieces as a file that is read once, front to back; `told` hears how much was taken in all."""

    def __init__(self, pieces: Iterator[bytes], told: Callable[[int], None]) -> None:
        self._pieces = pieces
        self._told = told
        self._rest = memoryview(b"")
        self._count = 0

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end."""
        parts = []
        while size > 0:
            if not self._rest:
                piece = next(self._pieces, b"")
                if not piece:
                    break
                self._count += len(piece)
                self._told(self._count)
                self._rest = memoryview(piece)
            part, self._rest = self._rest[:size], self._rest[size:]
            size -= len(part)
            parts.append(part)
        return b"".join(parts)
