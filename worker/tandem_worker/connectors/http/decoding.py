"""`Content-Encoding` (RFC 9110, 8.4): gzip, deflate, br and zstd, decoded while a body is read.

aiohttp's own decoding takes a body that ends in the middle of its gzip, br or zstd data for a
complete one. Here such a body broke off, as one does that is shorter than its Content-Length.
"""

import sys
import zlib
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import brotli
from aiohttp.base_protocol import BaseProtocol
from aiohttp.client_exceptions import ClientPayloadError
from aiohttp.streams import StreamReader

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STEP_BYTES = 256 << 10  # decoded at once, however little that takes of the body
MAX_CODINGS = 5  # of one body, as in curl


class WrongCoding(ClientPayloadError):
    """The body is not what its Content-Encoding declares."""


class _Decoder(Protocol):
    begun: bool  # whether the data so far ends in the middle

    def decode(self, data: bytes) -> Iterator[bytes]:
        """What the next data decodes to, in pieces of at most STEP_BYTES."""


class _Zlib:
    """gzip, of one member or several, and deflate with or without zlib's header."""

    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._stream = zlib.decompressobj(wbits)
        self.begun = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        out = b""
        while data or len(out) == STEP_BYTES:
            if not self.begun:
                self._stream = zlib.decompressobj(self._wbits_for(data[0]))
                self.begun = True
            out = self._stream.decompress(data, STEP_BYTES)
            if out:
                yield out
            data = self._stream.unconsumed_tail
            if self._stream.eof:
                data, out, self.begun = self._stream.unused_data, b"", False

    def _wbits_for(self, first: int) -> int:
        # Servers send deflate with and without the header, which starts with the method 8.
        bare = self._wbits == zlib.MAX_WBITS and first & 0xF != 8
        return -zlib.MAX_WBITS if bare else self._wbits


class _Zstd:
    """Zstandard, of one frame or several."""

    def __init__(self) -> None:
        self._stream = zstd.ZstdDecompressor()
        self.begun = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data or (self.begun and not self._stream.needs_input):
            self.begun = True
            out = self._stream.decompress(data, STEP_BYTES)
            if out:
                yield out
            data = b""
            if self._stream.eof:
                data, self.begun = self._stream.unused_data, False
                self._stream = zstd.ZstdDecompressor()


class _Brotli:
    def __init__(self) -> None:
        self._stream = brotli.Decompressor()
        self.begun = False

    def decode(self, data: bytes) -> Iterator[bytes]:
        # Its limit stops some steps short of all that the data holds: an empty step is the last.
        while out := self._stream.process(data, output_buffer_limit=STEP_BYTES):
            data = b""
            yield out
            if self._stream.is_finished():
                break
        self.begun = not self._stream.is_finished()


_DECODERS: dict[str, Callable[[], _Decoder]] = {
    "gzip": lambda: _Zlib(zlib.MAX_WBITS + 16),
    "x-gzip": lambda: _Zlib(zlib.MAX_WBITS + 16),
    "deflate": lambda: _Zlib(zlib.MAX_WBITS),
    "br": _Brotli,
    "zstd": _Zstd,
}


def codings(values: Sequence[str]) -> list[str]:
    """The codings of a body in the order in which they were applied, or [] if one is unknown."""
    names = [name.strip().lower() for value in values for name in value.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    known = len(names) <= MAX_CODINGS and all(name in _DECODERS for name in names)
    return names if known else []


class DecodedBody(StreamReader):
    """The body as it was before its codings. Reading raises WrongCoding and ClientPayloadError."""

    def __init__(
        self,
        protocol: BaseProtocol,
        body: StreamReader,
        names: Sequence[str],
        loop: AbstractEventLoop,
    ) -> None:
        # Above STEP_BYTES, so that only the body itself pauses its connection.
        super().__init__(protocol, 2 * STEP_BYTES, loop=loop)
        self._source = body
        self._names = ", ".join(names)
        self._decoders = [_DECODERS[name]() for name in reversed(names)]
        self._pieces: Iterator[bytes] = iter(())

    async def _wait(self, *_: str) -> None:
        """Decode the next piece; all methods that read call this while there is no data."""
        try:
            while (piece := next(self._pieces, None)) is None:
                data = await self._source.readany()
                if not data:
                    self._end()
                    return
                self._pieces = _decoded(data, self._decoders)
            self.feed_data(piece)
        except (zlib.error, zstd.ZstdError, brotli.error) as error:
            self._fail(WrongCoding(f"the body is not encoded as declared: {self._names}"), error)

    def _end(self) -> None:
        if any(decoder.begun for decoder in self._decoders):
            self._fail(ClientPayloadError(f"the body ends in the middle of its {self._names}"))
        self.feed_eof()

    def _fail(self, error: ClientPayloadError, cause: Exception | None = None) -> None:
        self.set_exception(error)
        raise error from cause


def _decoded(data: bytes, decoders: Sequence[_Decoder]) -> Iterator[bytes]:
    first, *others = decoders
    for piece in first.decode(data):
        if others:
            yield from _decoded(piece, others)
        else:
            yield piece
