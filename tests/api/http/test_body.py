"""Bodies are bounded in size and in time; listening addresses are checked."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from tandem_api.http.body import MAX_DEPTH, read_body, refuse_depth
from tandem_api.http.memory import request_memory
from tandem_api.http.parameters import read_headers
from tandem_api.server.sockets import listen, url_of
from tandem_shared.errors import Invalid, Misconfigured, TooLarge


def request(*messages: dict[str, Any], **headers: str) -> Request:
    """A request whose body arrives in these messages; then the client stays silent."""
    left = iter(messages)

    async def receive() -> Any:
        if (message := next(left, None)) is None:
            await asyncio.Event().wait()
        return message

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    # As the Edge and the lifespan do.
    state = {"headers": read_headers(raw), "memory": request_memory(1 << 20)}
    return Request({"type": "http", "method": "POST", "headers": raw, "state": state}, receive)


def part(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_a_body_is_joined_from_its_parts() -> None:
    assert await read_body(request(part(b"ab"), part(b""), part(b"c", more=False)), 3) == b"abc"


async def test_a_body_that_never_arrives_times_out() -> None:
    with pytest.raises(HTTPException) as refused:
        await read_body(request(part(b"ab")), 100, total_seconds=0.02)
    assert refused.value.status_code == 408


async def test_a_body_above_the_limit_is_read_no_further() -> None:
    with pytest.raises(TooLarge):
        await read_body(request(part(b"abc")), 2)
    with pytest.raises(TooLarge):
        await read_body(request(content_length="3"), 2)


async def test_a_client_disconnect_is_not_a_server_error() -> None:
    with pytest.raises(ClientDisconnect):
        await read_body(request(part(b"ab"), {"type": "http.disconnect"}), 100)


def nested(depth: int) -> Any:
    value: Any = 1
    for number in range(depth):
        value = [value] if number % 2 else {"a": value, "b": 2}
    return value


def test_depth_counts_nesting_instead_of_brackets() -> None:
    many = b"[" * 1000
    refuse_depth(nested(MAX_DEPTH), many)
    refuse_depth([[]] * 1000, many)
    with pytest.raises(Invalid):
        refuse_depth(nested(MAX_DEPTH + 1), many)


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for one in opened:
        one.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_free_port_is_the_same_on_every_address(sockets: list[socket.socket], host: str) -> None:
    sockets += listen(host, 0)
    port = sockets[0].getsockname()[1]
    assert {one.getsockname()[1] for one in sockets} == {port}
    assert url_of(sockets, host) == f"http://{host}:{port}"
    with socket.create_connection((host, port), timeout=5):
        pass
    with pytest.raises(Misconfigured, match="cannot listen on"):
        listen(host, port)


def test_an_invalid_address_is_refused() -> None:
    with pytest.raises(Misconfigured, match="TANDEM_HOST"):
        listen("nowhere.invalid", 0)
