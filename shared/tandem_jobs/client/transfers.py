"""Files on their way to and from the API, as its Python client moves them: everything here blocks on a disk."""

import base64
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

from tandem_shared.errors import Unavailable

CHUNK = 256 << 10  # bytes
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/=]+):")
_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/(?:[0-9]+|\*)")


class Source:
    """What is uploaded: read from its beginning once for each try."""

    def __init__(self, file: IO[bytes], *, own: bool) -> None:
        self._file, self._own = file, own
        self._begun = False
        named = getattr(file, "name", None)
        self.name = (
            Path(named).name if isinstance(named, str) and not named.startswith("<") else None
        )
        self._start = file.tell() if file.seekable() else None
        self.size: int | None = None  # bytes, None if only its end will tell
        if self._start is not None:
            self.size = file.seek(0, io.SEEK_END) - self._start
            file.seek(self._start)

    @classmethod
    def of(cls, source: str | Path | IO[bytes]) -> "Source":
        """A file by its path, closed by `close`, or an open one, which stays so. Raises OSError."""
        if isinstance(source, str | Path):
            return cls(Path(source).open("rb"), own=True)
        return cls(source, own=False)

    def rewind(self) -> None:
        """Begin again. Raises Unavailable if that cannot be."""
        if self._begun:
            if self._start is None:
                raise Unavailable(
                    "the connection was lost, and what is uploaded cannot be read again"
                )
            self._file.seek(self._start)
        self._begun = True

    def read(self) -> bytes:
        """The next bytes, empty at the end."""
        return self._file.read(CHUNK)

    def close(self) -> None:
        if self._own:
            self._file.close()


class Keep(Protocol):
    """Ends a part: it is the file now, or it is gone. The first call counts."""

    def __call__(self, *, done: bool) -> None: ...


def part_of(path: Path) -> tuple[IO[bytes], Keep]:
    """A new file beside `path`, which takes its place when all of it is there. Raises OSError."""
    descriptor, name = tempfile.mkstemp(
        prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent
    )
    file = os.fdopen(descriptor, "wb")
    # mkstemp's file is for its owner alone; a download is as any new file of this user.
    mask = os.umask(0o077)
    os.umask(mask)
    Path(name).chmod(0o666 & ~mask)

    def keep(*, done: bool) -> None:
        if file.closed:
            return
        file.close()
        if done:
            Path(name).replace(path)
        else:
            with suppress(FileNotFoundError):
                Path(name).unlink()

    return file, keep


class Digest:
    """Where a download is, and whether what came is what was to come."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._size = 0
        self._etag: str | None = None
        self._expected: bytes | None = None
        self._end: int | None = None  # where this answer ends, if it says so

    def resumption(self) -> Mapping[str, str]:
        """The headers that ask for the rest."""
        if not self._size or self._etag is None:
            return {}
        return {"Range": f"bytes={self._size}-", "If-Range": self._etag}

    def begin(self, status: int, headers: Mapping[str, str]) -> int:
        """Take an answer's head; the number of its first bytes that have come already. Raises Unavailable."""
        etag = headers.get("etag")
        if self._size and (etag is None or etag != self._etag):
            raise Unavailable("the file has changed while it was read")
        self._etag = etag
        start = 0
        if status == 206:
            match = _RANGE.fullmatch(headers.get("content-range", ""))
            if match is None or (start := int(match[1])) > self._size:
                raise Unavailable("the answer is not the range that was asked for")
        if (match := _DIGEST.search(headers.get("repr-digest", ""))) is not None:
            self._expected = base64.b64decode(match[1])
        length = headers.get("content-length")
        self._end = None if length is None else start + int(length)
        return self._size - start

    def update(self, piece: bytes) -> None:
        self._hash.update(piece)
        self._size += len(piece)

    def complete(self) -> bool:
        """Whether all is there. Raises Unavailable if it is not what the service says it is."""
        if self._end is not None and self._size < self._end:
            return False
        if self._expected is not None and self._hash.digest() != self._expected:
            raise Unavailable("the file did not arrive as it is stored: its hash is another")
        return True
