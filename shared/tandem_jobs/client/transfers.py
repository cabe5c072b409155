"""Files on their way to and from the API. Everything here but DownloadState blocks on a disk."""

import base64
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from tandem_shared.errors import Unavailable

CHUNK_BYTES = 256 << 10
_DIGEST = re.compile(r"sha-256=:([A-Za-z0-9+/=]+):")
_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/(?:[0-9]+|\*)")


class UploadSource:
    """A file to upload, by its path or open. An open file is read from its current position.

    Raises OSError.
    """

    def __init__(self, source: str | Path | IO[bytes]) -> None:
        self._owned = isinstance(source, str | Path)
        if isinstance(source, str | Path):
            source = Path(source).open("rb")  # noqa: SIM115 - `close` closes it
        self._file = source
        self._started = False
        name = getattr(self._file, "name", None)
        self.name = Path(name).name if isinstance(name, str) and not name.startswith("<") else None
        self.size: int | None = None  # bytes; unknown if the file cannot seek
        if self._file.seekable():
            self._start = self._file.tell()
            self.size = self._file.seek(0, io.SEEK_END) - self._start
            self._file.seek(self._start)

    def rewind(self) -> None:
        """Go back to the start for another try. Raises Unavailable if the file cannot seek."""
        if self._started:
            if self.size is None:
                raise Unavailable("the connection was lost, and the upload cannot be read again")
            self._file.seek(self._start)
        self._started = True

    def read(self) -> bytes:
        """The next bytes, empty at the end."""
        return self._file.read(CHUNK_BYTES)

    def close(self) -> None:
        """Close the file if this object opened it."""
        if self._owned:
            self._file.close()


class PartFile:
    """A new file beside `path` that replaces it once it is complete. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        descriptor, name = tempfile.mkstemp(
            prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent
        )
        self._part = Path(name)
        self.file = os.fdopen(descriptor, "wb")
        # mkstemp makes the file private; give it the mode of any new file of this user.
        mask = os.umask(0o077)
        os.umask(mask)
        self._part.chmod(0o666 & ~mask)

    def commit(self) -> None:
        """Put the file at `path`."""
        self.file.close()
        self._part.replace(self._path)

    def discard(self) -> None:
        """Remove the file unless it was committed."""
        self.file.close()
        self._part.unlink(missing_ok=True)


class DownloadState:
    """Counts and hashes the bytes of a download over any number of connections."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._size = 0
        self._skip = 0  # bytes of the current response that an earlier one brought
        self._etag: str | None = None
        self._sha256: bytes | None = None  # as the server reports it
        self._end: int | None = None  # offset at which the current response ends

    def range_headers(self) -> Mapping[str, str]:
        """The headers that request the bytes still missing."""
        if not self._size or self._etag is None:
            return {}
        return {"Range": f"bytes={self._size}-", "If-Range": self._etag}

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Read the head of a response. Raises Unavailable if it does not continue the download."""
        etag = headers.get("etag")
        if self._size and (etag is None or etag != self._etag):
            raise Unavailable("the file changed during the download")
        self._etag = etag
        start = 0
        if status == 206:
            match = _RANGE.fullmatch(headers.get("content-range", ""))
            if match is None or (start := int(match[1])) > self._size:
                raise Unavailable("the response is not the requested range")
        if (match := _DIGEST.search(headers.get("repr-digest", ""))) is not None:
            self._sha256 = base64.b64decode(match[1])
        length = headers.get("content-length")
        self._end = None if length is None else start + int(length)
        self._skip = self._size - start

    def add(self, data: bytes) -> bytes:
        """Count `data`; return the part of it that is new."""
        new = data[self._skip :]
        self._skip = max(0, self._skip - len(data))
        self._hash.update(new)
        self._size += len(new)
        return new

    def is_complete(self) -> bool:
        """Whether all bytes have arrived. Raises Unavailable if their hash is wrong."""
        if self._end is not None and self._size < self._end:
            return False
        if self._sha256 is not None and self._hash.digest() != self._sha256:
            raise Unavailable("the file was damaged on the way: its SHA-256 does not match")
        return True
