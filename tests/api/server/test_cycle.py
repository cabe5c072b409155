"""How a response reaches the transport: a complete one by one write, a stream as it comes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from tandem_api.server.cycle import Cycle
from tandem_api.server.http import HttpProtocol

JSON = [(b"content-type", b"application/json"), (b"content-length", b"2")]


class Transport(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


Send = Callable[[dict[str, Any]], Awaitable[None]]


async def respond(messages: list[dict[str, Any]], request: bytes = b"GET / HTTP/1.1") -> Transport:
    """The transport after a request that an application answers by these messages."""
    sent = asyncio.Event()

    async def application(_scope: Any, _receive: Any, send: Send) -> None:
        try:
            for message in messages:
                await send(message)
        finally:
            sent.set()

    transport = Transport()
    protocol = HttpProtocol(Config(application, log_config=None), ServerState(), {})
    protocol.connection_made(transport)
    protocol.data_received(request + b"\r\nHost: x\r\n\r\n")
    assert isinstance(protocol.cycle, Cycle)
    await sent.wait()
    await asyncio.sleep(0)  # the task of the request ends
    protocol.connection_lost(None)
    return transport


def start(status: int = 200, headers: list[tuple[bytes, bytes]] = JSON) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def test_a_complete_response_is_one_write() -> None:
    transport = await respond([start(), body(b"{}")])
    (written,) = transport.written
    assert written.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
    assert written.endswith(b"content-length: 2\r\n\r\n{}")


async def test_the_response_to_head_has_no_body() -> None:
    transport = await respond([start(), body(b"{}")], b"HEAD / HTTP/1.1")
    (written,) = transport.written
    assert written.endswith(b"content-length: 2\r\n\r\n")


async def test_the_head_of_a_stream_waits_for_its_first_message_only() -> None:
    transport = await respond([start(headers=[]), body(b"", more=True), body(b"a", more=True)])
    head, *chunks = transport.written
    assert head == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    assert b"".join(chunks) == b"1\r\na\r\n"


async def test_a_body_of_unknown_length_is_chunked_also_when_it_is_complete() -> None:
    transport = await respond([start(headers=[]), body(b"a")])
    assert b"".join(transport.written).endswith(
        b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    )


@pytest.mark.parametrize("header", [(b"x y", b"z"), (b"x", b"y\r\nz: 1")])
async def test_an_invalid_header_never_reaches_the_client(header: tuple[bytes, bytes]) -> None:
    transport = await respond([start(headers=[*JSON, header]), body(b"{}")])
    assert (transport.written, transport.closed) == ([], True)


async def test_a_response_that_never_gets_a_body_closes_the_connection() -> None:
    transport = await respond([start()])
    assert (transport.written, transport.closed) == ([], True)


async def test_a_response_that_closes_is_written_before() -> None:
    transport = await respond([start(headers=[*JSON, (b"connection", b"close")]), body(b"{}")])
    (written,) = transport.written
    assert written.endswith(b"connection: close\r\n\r\n{}")
    assert transport.closed
