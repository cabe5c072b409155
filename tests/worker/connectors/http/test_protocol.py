"""How the header block of a response is found, and what of aiohttp that builds on."""

import asyncio
import functools
import inspect
import zlib
from typing import Any

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_parser import HttpResponseParser
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from tandem_worker.connectors.http.decoding import DecodedBody
from tandem_worker.connectors.http.protocol import (
    MAX_HEAD_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    HeadersTooLarge,
    ResponseHead,
    ResponseProtocol,
)


class CountedBytes(bytearray):
    """Counts the bytes that each search passes over."""

    scanned = 0

    def _count(self, start: int, end: int | None) -> None:
        self.scanned += (len(self) if end is None else end) - start

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        self._count(start, end)
        return super().find(sub, start, end)

    def rfind(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        self._count(start, end)
        return super().rfind(sub, start, end)

    def count(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        self._count(start, end)
        return super().count(sub, start, end)


def trickle(head: ResponseHead, data: bytes, size: int) -> int | None:
    for at in range(0, len(data), size):
        end = head.add(data[at : at + size])
        if end is not None:
            return end
    return None


def block(line: bytes, times: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + line * times + b"\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000, 10_000, 1 << 20])
@pytest.mark.parametrize(
    "data",
    [
        block(b"X: " + b"a" * 60_000 + b"\r\n", 4),
        block(b"X: a\r\n", MAX_HEADERS),
        block(b"X: a\n", 3)[:-2] + b"\n",
    ],
    ids=["4 long headers", "many headers", "line feeds alone"],
)
def test_a_header_block_is_scanned_once_however_it_arrives(data: bytes, size: int) -> None:
    counted = CountedBytes()
    assert trickle(ResponseHead(counted), data + b"body"[: size - 1], size) == len(data)
    # Four searches, which look at up to two bytes again with each piece.
    assert counted.scanned <= 8 * (len(data) + 4)


@pytest.mark.parametrize("size", [1000, 10_000, 70_000, 1 << 20])
@pytest.mark.parametrize(
    ("data", "bound"),
    [
        (block(b"X: " + b"a" * MAX_HEADER_BYTES + b"\r\n", 1), "a header has"),
        (block(b"X: a\r\n", 20)[:-2] + b"X: " + b"a" * MAX_HEADER_BYTES, "a header has"),
        (block(b"X: a\r\n", MAX_HEADERS + 1), "more than 1000 headers"),
        (block(b"X: " + b"a" * 1000 + b"\r\n", MAX_HEAD_BYTES // 1000), "KiB together"),
    ],
)
def test_a_passed_bound_is_named_however_the_block_arrives(
    data: bytes, bound: str, size: int
) -> None:
    with pytest.raises(HeadersTooLarge, match=bound):
        trickle(ResponseHead(), data, size)


# What protocol.py and decoding.py override or call, beyond aiohttp's documentation.
SIGNATURES = {
    ResponseHandler.set_response_params: ["timer", "skip_payload", "read_until_eof"],
    ResponseHandler.data_received: ["data"],
    ResponseHandler.connection_lost: ["exc"],
    ResponseHandler.set_exception: ["exc", "exc_cause"],
    ResponseHandler.feed_data: ["data", "size"],
    ResponseHandler.force_close: [],
    StreamReader._wait: ["func_name"],
    StreamReader.feed_data: ["data", "size"],
    StreamReader.feed_eof: [],
    StreamReader.on_eof: ["callback"],
}


@pytest.mark.parametrize("method", SIGNATURES, ids=lambda method: method.__qualname__)
def test_aiohttp_has_the_methods_that_the_protocol_replaces(method: Any) -> None:
    found = list(inspect.signature(method).parameters)[1:]
    expected = SIGNATURES[method]
    assert found[: len(expected)] == expected, (
        f"aiohttp {aiohttp.__version__} changed {method.__qualname__}: read it again, then adapt"
        " connectors/http/protocol.py and decoding.py"
    )


async def test_aiohttp_opens_its_connections_with_the_factory() -> None:
    async with aiohttp.TCPConnector() as connector:
        factory = connector._factory
    assert isinstance(factory, functools.partial), "aiohttp opens connections in another way now"
    assert (factory.func, set(factory.keywords)) == (ResponseHandler, {"loop"}), (
        "aiohttp opens connections in another way now: adapt open_http in connectors/http/client.py"
    )


async def test_aiohttp_keeps_the_state_that_the_protocol_reads() -> None:
    protocol = ResponseProtocol(loop=asyncio.get_running_loop())
    assert (protocol._parser, protocol._upgraded, protocol.transport) == (None, False, None)
    protocol.set_response_params()
    assert isinstance(protocol._parser, HttpResponseParser)
    ((message, payload),), upgraded, rest = protocol._parser.feed_data(
        b"HTTP/1.1 204 No\r\nContent-Encoding: br\r\n\r\n"
    )
    assert (message.code, message.headers.getall("Content-Encoding")) == (204, ["br"])
    assert (payload is EMPTY_PAYLOAD, upgraded, rest) == (True, False, b"")


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("read", (), b"ok\nmore"),
        ("read", (1,), b"o"),
        ("readany", (), b"ok\nmore"),
        ("readline", (), b"ok\n"),
        ("readexactly", (2,), b"ok"),
        ("readchunk", (), (b"ok\nmore", False)),
    ],
)
async def test_every_way_to_read_waits_for_decoded_data(
    name: str, arguments: tuple[int, ...], expected: Any
) -> None:
    loop = asyncio.get_running_loop()
    protocol = ResponseProtocol(loop=loop)
    source = StreamReader(protocol, 1 << 16, loop=loop)
    body = DecodedBody(protocol, source, ["deflate"], loop)
    reading = asyncio.create_task(getattr(body, name)(*arguments))
    source.feed_data(zlib.compress(b"ok\nmore"))
    source.feed_eof()
    assert await reading == expected
