"""The WebSocket handshake: origin, key, sub-protocol, and requests that fail it."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from tandem_api.server import websocket
from tests.api.fake_worker import FakeWorker
from tests.api.serving import raw_answer, serving
from tests.api.streams.test_websocket import V1, opened, receive, send_request

HANDSHAKE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n"
)


async def test_a_socket_that_ignores_pings_is_closed(
    client: httpx2.AsyncClient, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impatient(made: websocket.WebSocketProtocol, *args: Any, **options: Any) -> None:
        init(made, *args, **options)
        made.ping_interval = made.ping_timeout = 0.05

    init = websocket.WebSocketProtocol.__init__
    monkeypatch.setattr(websocket.WebSocketProtocol, "__init__", impatient)
    monkeypatch.setattr(websocket, "PONG_SECONDS", 0.1)
    answer = await raw_answer(client, HANDSHAKE + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 101 ")
    frames = answer.partition(b"\r\n\r\n")[2]
    assert frames.startswith(b"\x89\x04"), "a ping"
    assert (1011).to_bytes(2, "big") in frames.partition(b"\x88")[2]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HANDSHAKE.replace(b"Version: 13", b"Version: 1"), 400),
        (HANDSHAKE.replace(b"x3JJHMbDL1EzLkh9GBhXDw==", b"short"), 400),
        (HANDSHAKE + b"X-Long: %s\r\n" % (b"x" * 9000), 431),
        (HANDSHAKE + b"X-Many: x\r\n" * 200, 431),
        (HANDSHAKE.replace(b"GET", b"POST"), 405),
        (HANDSHAKE.replace(b"Upgrade: websocket", b"Upgrade: h2c"), 426),
        (b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", 426),
        (HANDSHAKE.replace(b"/v1/stream", b"/v1/other"), 404),
    ],
    ids=["version", "key", "line", "lines", "method", "protocol", "none", "path"],
)
async def test_an_invalid_handshake_is_a_problem(
    client: httpx2.AsyncClient, worker: FakeWorker, head: bytes, status: int
) -> None:
    answer = await raw_answer(client, head + b"\r\n")
    start, _, body = answer.partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/problem+json" in start
    assert msgspec.json.decode(body)["status"] == status


async def test_an_upgrade_does_not_cut_off_the_previous_answer(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    id = (await client.post("/v1/jobs", json={"task": "t.any"})).json()["id"]
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(b"GET /v1/jobs/%s?wait=20 HTTP/1.1\r\nHost: x\r\n\r\n" % id.encode())
    writer.write(HANDSHAKE + b"\r\n")
    claimed = await worker.claim()
    await worker.succeed(claimed, "done")
    async with asyncio.timeout(20):
        received = await reader.readuntil(b"HTTP/1.1 101 ")
    assert received.count(b"HTTP/1.1 200 ") == received.count(b'"result":"done"') == 1
    writer.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HANDSHAKE + b"Origin: http://attacker.example\r\n", 403),
        (HANDSHAKE.replace(b"Host: x", b"Host: attacker.example"), 403),
        (HANDSHAKE + b"Sec-WebSocket-Protocol: other\r\n", 400),
        (HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0"), 426),
    ],
    ids=["origin", "host", "protocol", "version"],
)
async def test_a_refused_handshake_is_no_error_of_the_service(
    client: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture, head: bytes, status: int
) -> None:
    answer = await raw_answer(client, head + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.lower().count(b"x-content-type-options: nosniff") == 1
    assert [one.getMessage() for one in caplog.records if one.levelname == "ERROR"] == []


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://evil.example", 403),
        ("null", 403),
        ("http://", 403),
        ("", 403),
        ("file://{host}", 403),
        ("http://{host}.evil.example", 403),
        ("http://{host}", 101),
        ("https://{host}", 101),
        ("https://app.example", 101),
        ("https://APP.example:8443", 101),
        ("https://app.example:444", 403),
        (None, 101),
    ],
)
async def test_pages_of_other_origins_are_refused(
    redis_url: str, worker: FakeWorker, tmp_path: Path, origin: str | None, status: int
) -> None:
    allowed = ("https://app.example", "https://App.example:8443")
    async with serving(redis_url, tmp_path, origins=allowed) as client:
        headers = (
            {}
            if origin is None
            else {"Origin": origin.format(host=f"127.0.0.1:{client.base_url.port}")}
        )
        if status == 101:
            async with opened(client, additional_headers=headers) as socket:
                assert socket.response is not None
            return
        with pytest.raises(InvalidStatus) as refused:
            async with opened(client, additional_headers=headers):
                pass
        assert_problem(refused.value, status)


def assert_problem(refused: InvalidStatus, status: int) -> None:
    answer = refused.response
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = msgspec.json.decode(answer.body or b"")
    assert (problem["status"], problem["instance"]) == (status, "/v1/stream")


async def test_the_only_sub_protocol_is_selected(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    async with opened(client, subprotocols=[Subprotocol("tandem.v9"), *V1]) as socket:
        assert socket.subprotocol == "tandem.v1"
    async with opened(client, subprotocols=None) as socket:  # as command-line clients do
        assert socket.subprotocol is None
        await send_request(socket, subscribe="nobody")
        assert (await receive(socket))["job"] == "nobody"
    with pytest.raises(InvalidStatus) as refused:
        async with opened(client, subprotocols=[Subprotocol("graphql-ws")]):
            pass
    assert_problem(refused.value, 400)


async def test_a_socket_requires_a_key_once_keys_are_set(
    redis_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    key = "tk_abcd_0123456789abcdef"
    async with serving(redis_url, tmp_path, keys=(key,)) as client:
        with pytest.raises(InvalidStatus) as refused:
            async with opened(client):
                pass
        assert_problem(refused.value, 401)
        assert refused.value.response.headers["www-authenticate"] == "Bearer"
        async with opened(client, additional_headers={"Authorization": f"Bearer {key}"}) as socket:
            await send_request(socket, subscribe="nobody")
            assert (await receive(socket))["type"] == "error"
