"""gzip and Zstandard as streams: detected by the first bytes, decompressed in bounded steps."""

import sys
import zlib
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Literal, Protocol

from tandem_worker.errors import Permanent

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["ByteSink", "Compression", "Deflating", "compression_of", "inflated", "zstd"]

Compression = Literal["gzip", "zstd"]

STEP_BYTES = 256 << 10  # decompressed at once, however little that takes of the input
_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_GZIP_WBITS = 31  # zlib: gzip's header and trailer, a window of 32 KiB


class ByteSink(Protocol):
    """Accepts bytes, such as `job.files.create(…)`."""

    def write(self, data: bytes, /) -> int: ...


def compression_of(start: bytes) -> Compression | None:
    """The compression of data that starts with these bytes (4 are enough), if any."""
    return next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)


def inflated(
    pieces: Iterable[bytes], compression: Compression | None
) -> Generator[bytes, None, None]:
    """The decompressed data, in pieces of at most STEP_BYTES; concatenated streams are one.

    Without a compression, the pieces are unchanged. Raises Permanent `invalid_file` for data that
    is damaged or ends too early.
    """
    if compression is None:
        yield from pieces
        return
    try:
        yield from _gzip(pieces) if compression == "gzip" else _zstd(pieces)
    except (zlib.error, zstd.ZstdError):
        raise _damaged(compression) from None


def _gzip(pieces: Iterable[bytes]) -> Iterator[bytes]:
    stream = zlib.decompressobj(_GZIP_WBITS)
    begun = False
    for piece in pieces:
        data = piece
        while data:
            if not begun:
                data = data.lstrip(b"\0")  # the padding of a tape's last block
                begun = bool(data)
                continue
            if out := stream.decompress(data, STEP_BYTES):
                yield out
            data = stream.unconsumed_tail
            if stream.eof:
                data, stream, begun = stream.unused_data, zlib.decompressobj(_GZIP_WBITS), False
    while begun and (out := stream.decompress(stream.unconsumed_tail, STEP_BYTES)):
        yield out
    if begun and not stream.eof:
        raise _damaged("gzip")


def _zstd(pieces: Iterable[bytes]) -> Iterator[bytes]:
    stream = zstd.ZstdDecompressor()
    begun = False
    for piece in pieces:
        data = piece
        while data or not stream.needs_input:
            begun = True
            if out := stream.decompress(data, STEP_BYTES):
                yield out
            data = b""
            if stream.eof:
                data, stream, begun = stream.unused_data, zstd.ZstdDecompressor(), False
                if not data:
                    break
    if begun:
        raise _damaged("zstd")


def _damaged(compression: Compression) -> Permanent:
    return Permanent("invalid_file", f"the {compression} data is damaged or ends too early")


class Deflating:
    """Compresses what is written, if at all, into a sink; `finish()` ends the stream.

    The same data gives the same bytes.
    """

    def __init__(self, sink: ByteSink, compression: Compression | None) -> None:
        self._sink = sink
        self._stream: Any = None
        if compression == "gzip":
            self._stream = zlib.compressobj(wbits=_GZIP_WBITS)
        elif compression == "zstd":
            self._stream = zstd.ZstdCompressor()

    def write(self, data: bytes, /) -> int:
        out = data if self._stream is None else self._stream.compress(data)
        if out:
            self._sink.write(out)
        return len(data)

    def finish(self) -> None:
        if self._stream is not None:
            self._sink.write(self._stream.flush())
