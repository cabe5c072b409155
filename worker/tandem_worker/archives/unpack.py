"""Unpacks zip and tar archives of stored files as streams, without trusting anything in them.

Whatever an archive says about itself may be a lie: sizes count only as bytes come out, and every
name is checked before a byte is stored under it. Errors are Permanent: `invalid_archive` for
archives that are damaged or of an unknown kind, `unsafe_archive` for entries that ordinary archives
of files do not have, `too_large` above a limit.
"""

import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import IO, Any, cast

from tandem_worker.archives.compression import Compression, compression_of, inflated
from tandem_worker.archives.names import entry_problem, parents
from tandem_worker.archives.pieces import PieceReader
from tandem_worker.errors import Permanent
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.sync import SyncJob

PIECE_BYTES = 256 << 10  # decompressed at once
MAX_RATIO = 200  # of bytes that come out to the archive's own
MIN_OUTPUT_BYTES = 16 << 20  # allowed at any ratio
MAX_HEADER_BYTES = 1 << 20  # of a tar, before one entry
MAX_DIRECTORY_BYTES = 8 << 20  # of a zip's list of entries
_IS_UTF8 = 0x800  # a flag of zip
_UNICODE_PATH = 0x7075  # the id of an extra field
_FAT = 0  # the system on which the archive was made
_FAT_DIRECTORY = 0x10  # an attribute


def unpack(job: SyncJob, source: FileRef, *, max_entries: int, max_bytes: int) -> Iterator[FileRef]:
    """Store the archive's files (`source` is as `stat` returns it) under their names, in order.

    Directories are left out. The first bytes decide what the archive is: a zip, or a tar that is
    plain or in gzip or Zstandard.
    """
    with closing(job.files.open(source)) as pieces:
        start = next(pieces, b"")
    guard = _Guard(source.size or 0, max_entries, max_bytes)
    job.progress(0, source.size)
    try:
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            yield from _unpack_zip(job, source, guard)
        else:
            yield from _unpack_tar(job, source, guard, compression_of(start))
    except Permanent as error:
        if error.type != "invalid_file":
            raise
        raise _invalid(error.message) from None
    # The libraries do not document what they raise for malformed data.
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        ValueError,
        OverflowError,
        LookupError,
    ) as error:
        raise _invalid(f"{type(error).__name__}: {error}") from None


class _Guard:
    """Checks the entries of one archive, and counts what comes out of it."""

    def __init__(self, size: int, max_entries: int, max_bytes: int) -> None:
        self._max_output = max(MIN_OUTPUT_BYTES, size * MAX_RATIO)
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries = 0
        self._output = 0
        self._stored = 0
        self._names: set[str] = set()
        self._folders: set[str] = set()

    def entry(self, name: str, *, folder: bool, size: int) -> str:
        """The entry's name as a file may have it. Raises Permanent if it must not be unpacked."""
        self.check_count(self._entries + 1)
        self._entries += 1
        plain = name.rstrip("/") if folder else name
        while plain.startswith("./"):
            plain = plain[2:].lstrip("/")
        if folder and plain in ("", "."):
            return ""
        problem = entry_problem(plain) or self._clash(plain, folder=folder)
        if problem is None and size < 0:
            problem = "has a negative size"
        if problem is not None:
            raise _unsafe(name, problem)
        self._folders |= parents(plain)
        if folder:
            self._folders.add(plain)
        else:
            self._names.add(plain)
            self._check_stored(self._stored + size)
        return plain

    def _clash(self, name: str, *, folder: bool) -> str | None:
        if not folder and name in self._names:
            return "appears twice"
        as_other_kind = name in (self._names if folder else self._folders)
        if as_other_kind or not self._names.isdisjoint(parents(name)):
            return "is both a file and a directory"
        return None

    def check_count(self, entries: int) -> None:
        """Raises Permanent `too_large` above the allowed number of entries."""
        if entries > self._max_entries:
            raise Permanent("too_large", f"the archive has more than {self._max_entries} entries")

    def add_output(self, size: int) -> None:
        """Count bytes that came out, of files and of the archive's own structure."""
        self._output += size
        if self._output > self._max_output:
            message = f"the archive inflates to more than {MAX_RATIO} times its size"
            raise Permanent("too_large", message)

    def add_stored(self, size: int) -> None:
        """Count bytes of files."""
        self._stored += size
        self._check_stored(self._stored)

    def _check_stored(self, size: int) -> None:
        if size > self._max_bytes:
            message = f"the archive's files have more than {self._max_bytes} bytes"
            raise Permanent("too_large", message)


def _unpack_zip(job: SyncJob, source: FileRef, guard: _Guard) -> Iterator[FileRef]:
    with (
        job.files.seek(source) as file,
        zipfile.ZipFile(cast("IO[bytes]", _BoundedFile(file))) as archive,
    ):
        entries = archive.infolist()
        guard.check_count(len(entries))
        named = [(_zip_entry(entry, guard), entry) for entry in entries]
        end = 0
        for entry in sorted(entries, key=lambda entry: entry.header_offset):
            if entry.header_offset < end:
                raise _unsafe(entry.filename, "shares its bytes with another entry")
            end = entry.header_offset + 30 + entry.compress_size
        done = 0
        for name, entry in named:
            if name is None:
                continue
            out = job.files.create(name)
            with archive.open(entry) as data:
                while piece := data.read(PIECE_BYTES):
                    guard.add_output(len(piece))
                    guard.add_stored(len(piece))
                    out.write(piece)
            if out.size != entry.file_size:
                raise _invalid(f"the entry {name!r} has another size than the archive says")
            done += entry.compress_size
            job.progress(done, source.size)
            yield out.commit()


def _zip_entry(entry: zipfile.ZipInfo, guard: _Guard) -> str | None:
    """The name of an entry that is a file; None for a directory."""
    name = _zip_name(entry)
    folder = name.endswith("/") or (_is_folder(entry) and entry.file_size == 0)
    plain = guard.entry(name, folder=folder, size=0 if folder else entry.file_size)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _unsafe(name, "is a link or a device")
    if entry.flag_bits & 1:
        raise Permanent("invalid_archive", f"the entry {name[:100]!r} is encrypted")
    # zipfile's other decompressors cannot be stopped after a number of bytes.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _invalid(f"the entry {name[:100]!r} is neither stored nor compressed with deflate")
    return None if folder else plain


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """The entry's name as Info-ZIP's unzip reads it, but for UTF-8 that no flag announces."""
    name = entry.orig_filename
    if not entry.flag_bits & _IS_UTF8:
        raw = name.encode("cp437")
        # Many programs write UTF-8 without setting the flag; other names are in code page 437.
        name = _unicode_path(entry.extra, raw) or _decoded(raw)
    if entry.create_system == _FAT and "/" not in name:
        name = name.replace("\\", "/")
    return name


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeError:
        return raw.decode("cp437")


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """The name in Info-ZIP's field for it, if that belongs to this raw name (APPNOTE 4.6.9)."""
    while len(extra) >= 4:
        id, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if id == _UNICODE_PATH and field[:5] == struct.pack("<BL", 1, zlib.crc32(raw)):
            with suppress(UnicodeError):
                return field[5:].decode()
    return None


def _is_folder(entry: zipfile.ZipInfo) -> bool:
    """Whether the attributes, of Unix or of FAT, say that the entry is a directory."""
    mode = entry.external_attr >> 16
    return stat.S_ISDIR(mode) if mode else bool(entry.external_attr & _FAT_DIRECTORY)


class _BoundedFile:
    """A zip file that refuses large reads: zipfile reads the whole list of entries at once."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            message = f"the archive's list of entries has more than {MAX_DIRECTORY_BYTES} bytes"
            raise Permanent("too_large", message)
        return self._file.read(MAX_DIRECTORY_BYTES if size < 0 else size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _unpack_tar(
    job: SyncJob, source: FileRef, guard: _Guard, compression: Compression | None
) -> Iterator[FileRef]:
    def stored() -> Generator[bytes, None, None]:
        done = 0
        for piece in job.files.open(source):
            done += len(piece)
            job.progress(done, source.size)
            yield piece

    with closing(inflated(stored(), compression)) as pieces:
        stream = _TarStream(pieces, guard)
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|") as archive:
            while (entry := stream.next(archive)) is not None:
                folder = entry.isdir()
                name = guard.entry(entry.name, folder=folder, size=0 if folder else entry.size)
                if entry.issparse() or not (entry.isreg() or folder):
                    raise _unsafe(entry.name, "is a link, a device or sparse")
                if folder:
                    continue
                out = job.files.create(name)
                data = archive.extractfile(entry)
                while data is not None and (piece := data.read(PIECE_BYTES)):
                    guard.add_stored(len(piece))
                    out.write(piece)
                if out.size != entry.size:
                    raise _invalid(f"the entry {name!r} ends too early")
                yield out.commit()
        # Read to the end: this verifies the checksum and counts hidden data.
        while stream.read(PIECE_BYTES):
            pass


class _TarStream(PieceReader):
    """A tar's bytes; headers, which tarfile reads as a whole, are bounded for each entry."""

    def __init__(self, pieces: Iterator[bytes], guard: _Guard) -> None:
        super().__init__(pieces)
        self._guard = guard
        self._header_left: int | None = MAX_HEADER_BYTES

    def next(self, archive: tarfile.TarFile) -> tarfile.TarInfo | None:
        """The archive's next entry."""
        self._header_left = MAX_HEADER_BYTES
        entry = archive.next()
        self._header_left = None
        return entry

    def read(self, size: int) -> bytes:
        data = super().read(size)
        self._guard.add_output(len(data))
        if self._header_left is not None:
            self._header_left -= len(data)
            if self._header_left < 0:
                message = f"the archive has a header of more than {MAX_HEADER_BYTES} bytes"
                raise Permanent("too_large", message)
        return data


def _unsafe(name: str, problem: str) -> Permanent:
    return Permanent("unsafe_archive", f"the archive's entry {name[:100]!r} {problem}")


def _invalid(reason: str) -> Permanent:
    return Permanent("invalid_archive", f"the archive cannot be read: {reason[:200]}")
