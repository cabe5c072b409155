"""What one connection may take: requests that wait, bodies after their answers, odd requests."""

import asyncio
import logging
from pathlib import Path

import httpx2
import pytest

from tandem_api.http.memory import MemoryBudget
from tandem_api.server import http
from tests.api.fake_worker import FakeWorker
from tests.api.serving import raw_answer, serving

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /v1/queues HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
JOB = b'{"task":"t.any"}'
POST = (
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(JOB), JOB)
)


@pytest.mark.parametrize("size", [1 << 20, 1000, 37, 8])
async def test_pipelined_requests_are_answered_in_order(
    client: httpx2.AsyncClient, worker: FakeWorker, size: int
) -> None:
    data = (LIVEZ + POST) * 20 + LAST
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    for start in range(0, len(data), size):
        writer.write(data[start : start + size])
        await asyncio.sleep(0)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    codes = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert codes == [b"200", b"202"] * 20 + [b"200"]


async def test_a_body_with_request_lines_is_a_body(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    log = b"127.0.0.1 GET /livez HTTP/1.1 200\r\n\r\nGET / HTTP/1.1\r\n\r\n" * 5000
    head = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(log)
    answer = await raw_answer(client, head + log + LAST)
    assert answer.startswith(b"HTTP/1.1 201 ")
    assert b'"size":%d' % len(log) in answer
    assert answer.count(b"HTTP/1.1 ") == 2


async def test_requests_beyond_the_room_for_them_close_the_connection(
    client: httpx2.AsyncClient, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryBudget, "take", lambda *_: False)
    answer = await raw_answer(client, LIVEZ * 20)
    assert answer.count(b"HTTP/1.1 200 ") == 1
    assert b"connection: close" in answer


async def test_what_follows_a_request_does_not_cost_it_its_answer(
    client: httpx2.AsyncClient,
) -> None:
    answer = await raw_answer(client, LIVEZ + b"GARBAGE\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'{"status":"ok"}' in answer


@pytest.mark.parametrize("path", ["/livez", "/v1/nothing"])
async def test_a_body_that_drips_after_its_answer_ends_with_the_connection(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(http, "DISCARD_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode())
    received = asyncio.create_task(reader.read())
    async with asyncio.timeout(20):
        while not received.done():
            writer.write(b"x")
            await asyncio.sleep(0.01)
    writer.close()
    try:
        answer = await received
    except ConnectionResetError:
        return
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_a_body_that_ends_after_its_answer_keeps_the_connection(
    client: httpx2.AsyncClient,
) -> None:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    async with asyncio.timeout(20):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n12")
        await reader.readuntil(b'{"status":"ok"}')
        writer.write(b"34" + LAST)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()


@pytest.mark.parametrize("pause", [False, True])
async def test_trailers_are_no_headers(
    redis_url: str, worker: FakeWorker, tmp_path: Path, pause: bool
) -> None:
    key = "tk_some_0123456789abcdef"
    head = (
        b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\nConnection: close\r\n"
    )
    chunks = b"%x\r\n%s\r\n0\r\n" % (len(JOB), JOB)
    authorization = b"Authorization: Bearer %s\r\n" % key.encode()
    trailers = b"X-Request-ID: trailer\r\nIdempotency-Key: k\r\n"
    async with serving(redis_url, tmp_path, keys=(key,)) as client:

        async def ask(request: bytes, rest: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            writer.write(request)
            if pause:
                await writer.drain()
                await client.get("/livez")  # the head arrives by itself
            writer.write(rest)
            async with asyncio.timeout(20):
                answer = await reader.read()
            writer.close()
            return answer

        refused = await ask(head + b"\r\n", chunks + authorization + b"\r\n")
        assert refused.startswith(b"HTTP/1.1 401 ")
        taken = await ask(head + authorization + b"\r\n", chunks + trailers + b"\r\n")
        assert taken.startswith(b"HTTP/1.1 202 ")
        assert b"x-request-id" not in taken
        again = await ask(head + authorization + b"\r\n", chunks + trailers + b"\r\n")
        assert b"idempotent-replayed" not in again


@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        (b"GET /livez HTTP/2.0", b"", 505),
        (b"GET /livez HTTP/0.9", b"", 505),
        (b"POST /v1/jobs HTTP/1.1", b"Transfer-Encoding: gzip, chunked\r\n", 501),
        (b"POST /v1/jobs HTTP/1.1", b"Transfer-Encoding: gzip\r\n", 501),
    ],
)
async def test_other_versions_and_codings_are_refused(
    client: httpx2.AsyncClient, request_line: bytes, headers: bytes, status: int
) -> None:
    head = request_line + b"\r\nHost: x\r\n" + headers + b"\r\n"
    for before in (b"", LIVEZ):
        answer = await raw_answer(client, before + head)
        if before:
            assert answer.startswith(b"HTTP/1.1 200 ")
        else:
            assert answer.startswith(b"HTTP/1.1 %d " % status), answer
            assert b"application/problem+json" in answer


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_http_1_0_gets_no_chunks(
    client: httpx2.AsyncClient, worker: FakeWorker, version: str
) -> None:
    id = (await client.post("/v1/jobs", json={"task": "t.any"})).json()["id"]
    await worker.succeed(await worker.claim(), "done")
    head = f"GET /v1/jobs/{id}/stream HTTP/{version}\r\nHost: x\r\nConnection: close\r\n"
    answer = await raw_answer(client, f"{head}Accept: application/x-ndjson\r\n\r\n".encode())
    start, _, body = answer.partition(b"\r\n\r\n")
    assert (b"transfer-encoding: chunked" in start) == (version == "1.1")
    assert b"connection: close" in start
    if version == "1.0":
        assert body.startswith(b'{"id":')
        assert b'"type":"end"' in body.splitlines()[-1]


async def test_clients_that_leave_unread_answers_cause_no_error(
    client: httpx2.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(3):
        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
        await client.get("/livez")
        writer.transport.abort()
    for _ in range(20):
        await client.get("/livez")
    assert [one.getMessage() for one in caplog.records if one.levelname == "ERROR"] == []
