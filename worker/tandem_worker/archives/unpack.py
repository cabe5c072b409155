"""zip and tar archives of stored files, written and unpacked as streams; nothing is taken from one on trust.

For unpacking, whatever an archive says of itself may be a lie: sizes are those that really come
out, and every name is judged before a byte is stored under it. Errors are Permanent:
`invalid_archive` for one that is damaged or of no kind known here, `unsafe_archive` for an entry
that no plain archive of files has, `too_large` for a cap exceeded.
"""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import IO, Any, cast

from tandem_worker.archives.compression import Compression, compression_of, inflated
from tandem_worker.archives.names import Progress, _parents, _refuse
from tandem_worker.archives.pack import _Stream
from tandem_worker.errors import Permanent
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.sync import SyncFiles

PIECE = 256 << 10  # bytes inflated at once
RATIO, FREE = (
    200,
    16 << 20,
)  # what comes out may be so many times what went in, and this many bytes in any case
HEADERS = 1 << 20  # bytes of a tar's headers before one entry
DIRECTORY = 8 << 20  # bytes of a zip's list of entries


# ------------------------------------------------------------------------------------------ writing


# ---------------------------------------------------------------------------------------- unpacking


class _Guard:
    """Judges the entries of one archive, and counts what comes out of it."""

    def __init__(self, size: int, max_entries: int, max_bytes: int) -> None:
        self._most = max(FREE, size * RATIO)
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries = 0
        self._out = 0
        self._stored = 0
        self._names: set[str] = set()
        self._folders: set[str] = set()

    def entry(self, name: str, *, folder: bool, size: int) -> str:
        """The entry's name as a file may have it. Raises Permanent for one that must not be unpacked."""
        self.count(self._entries + 1)
        self._entries += 1
        plain = name.rstrip("/") if folder else name
        while plain.startswith("./"):
            plain = plain[2:].lstrip("/")
        if folder and plain in ("", "."):
            return ""
        reason = _refuse(plain)
        if reason is None and not folder and plain in self._names:
            reason = "stands in it twice"
        if reason is None and (
            (not folder and plain in self._folders) or plain in (self._names if folder else ()) or
            not self._names.isdisjoint(_parents(plain))
        ):  # fmt: skip
            reason = "is both a file and a directory"
        if reason is None and size < 0:
            reason = "has a negative size"
        if reason is not None:
            raise unsafe(name, reason)
        self._folders |= _parents(plain)
        if folder:
            self._folders.add(plain)
        else:
            self._names.add(plain)
            if self._stored + size > self._max_bytes:
                raise self._too_many_bytes()
        return plain

    def count(self, entries: int) -> None:
        """So many entries are in it."""
        if entries > self._max_entries:
            raise Permanent("too_large", f"the archive has more than {self._max_entries} entries")

    def came(self, size: int) -> None:
        """So many bytes came out of it, be they a file's or its own."""
        self._out += size
        if self._out > self._most:
            raise Permanent(
                "too_large",
                f"the archive inflates to more than {RATIO} times its size, as no plain archive does",
            )

    def stored(self, size: int) -> None:
        """So many bytes of a file came out of it."""
        self._stored += size
        if self._stored > self._max_bytes:
            raise self._too_many_bytes()

    def _too_many_bytes(self) -> Permanent:
        return Permanent("too_large", f"the archive's files have more than {self._max_bytes} bytes")


def unpack(
    files: SyncFiles, source: FileRef, *, max_entries: int, max_bytes: int, progress: Progress
) -> Iterator[FileRef]:
    """Store the archive's files (`source` as `stat` gives it) under their names in it, in its order.

    Directories are left out. What an archive is, its first bytes say: a zip, or a tar in gzip, in
    Zstandard or bare.
    """
    with closing(files.open(source)) as pieces:
        start = next(pieces, b"")
    guard = _Guard(source.size or 0, max_entries, max_bytes)
    try:
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            yield from _unpack_zip(files, source, guard, progress)
        else:
            yield from _unpack_tar(files, source, guard, compression_of(start), progress)
    except Permanent as error:
        if error.type != "invalid_file":
            raise
        raise _invalid(error.message) from None
    # What these libraries raise for bytes that make no sense to them is no closed list.
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


def _unpack_zip(
    files: SyncFiles, source: FileRef, guard: _Guard, progress: Progress
) -> Iterator[FileRef]:
    with (
        files.seek(source) as file,
        zipfile.ZipFile(cast("IO[bytes]", _Directory(file))) as archive,
    ):
        entries = archive.infolist()
        guard.count(len(entries))
        named = [(_zip_entry(entry, guard), entry) for entry in entries]
        ends = 0
        for entry in sorted(entries, key=lambda entry: entry.header_offset):
            if entry.header_offset < ends:
                raise unsafe(entry.filename, "shares its bytes with another entry")
            ends = entry.header_offset + 30 + entry.compress_size
        done = 0
        for name, entry in named:
            if entry.is_dir():
                continue
            out = files.create(name)
            with archive.open(entry) as data:
                while piece := data.read(PIECE):
                    guard.came(len(piece))
                    guard.stored(len(piece))
                    out.write(piece)
            if out.size != entry.file_size:
                raise _invalid(f"the entry {name!r} has another size than the archive says")
            done += entry.compress_size
            progress(done)
            yield out.commit()


def _zip_entry(entry: zipfile.ZipInfo, guard: _Guard) -> str:
    name = entry.orig_filename
    if not entry.flag_bits & 0x800:
        # Many write UTF-8 and do not say so; what is none stays in the code page that zip began
        # with.
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    plain = guard.entry(name, folder=entry.is_dir(), size=0 if entry.is_dir() else entry.file_size)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise unsafe(name, "is a link or a device")
    if entry.flag_bits & 1:
        raise Permanent("invalid_archive", f"the entry {name[:100]!r} is encrypted")
    # The others' decompressors do not stop after a number of bytes.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _invalid(
            f"the entry {name[:100]!r} is compressed in a way that is not supported (deflate is)"
        )
    return plain


class _Directory:
    """A zip's file, of which no large part is read at once: its list of entries is, however long it says it is."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if size > DIRECTORY:
            raise Permanent(
                "too_large", f"the archive's list of entries has more than {DIRECTORY} bytes"
            )
        return self._file.read(DIRECTORY if size < 0 else size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _unpack_tar(
    files: SyncFiles,
    source: FileRef,
    guard: _Guard,
    compression: Compression | None,
    progress: Progress,
) -> Iterator[FileRef]:
    read = 0

    def counted() -> Generator[bytes, None, None]:
        nonlocal read
        for piece in files.open(source):
            read += len(piece)
            progress(read)
            yield piece

    with closing(inflated(counted(), compression)) as pieces:
        stream = _Headers(pieces, guard)
        # An empty stream is an empty archive to tarfile, and no archive to anybody else.
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|", errorlevel=2) as archive:
            while (entry := stream.next(archive)) is not None:
                folder = entry.isdir()
                name = guard.entry(entry.name, folder=folder, size=0 if folder else entry.size)
                if entry.issparse() or not (entry.isreg() or folder):
                    raise unsafe(entry.name, "is a link, a device or sparse")
                if folder:
                    continue
                out = files.create(name)
                data = archive.extractfile(entry)
                while data is not None and (piece := data.read(PIECE)):
                    guard.stored(len(piece))
                    out.write(piece)
                if out.size != entry.size:
                    raise _invalid(f"the entry {name!r} ends too early")
                yield out.commit()
        # To its end, where checksums are, and whatever may be hidden is counted.
        while stream.read(PIECE):
            pass


class _Headers(_Stream):
    """A tar's bytes; of headers, which tarfile reads whole, only HEADERS bytes are given for one entry."""

    def __init__(self, pieces: Iterator[bytes], guard: _Guard) -> None:
        super().__init__(pieces, lambda _: None)
        self._guard = guard
        self._left: int | None = HEADERS

    def next(self, archive: tarfile.TarFile) -> tarfile.TarInfo | None:
        """The archive's next entry."""
        self._left = HEADERS
        entry = archive.next()
        self._left = None
        return entry

    def read(self, size: int) -> bytes:
        data = super().read(size)
        self._guard.came(len(data))
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise Permanent(
                    "too_large", f"the archive has a header of more than {HEADERS} bytes"
                )
        return data


def unsafe(name: str, reason: str) -> Permanent:
    """The refusal of an entry."""
    return Permanent("unsafe_archive", f"the archive's entry {name[:100]!r} {reason}")


def _invalid(reason: str) -> Permanent:
    return Permanent("invalid_archive", f"the archive cannot be read: {reason[:200]}")
