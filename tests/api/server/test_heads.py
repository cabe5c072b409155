"""A request head is bounded in size and time; bodies do not count towards either limit."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import httpx2
import pytest

from tandem_api.server import http
from tests.api.fake_worker import FakeWorker

LIMIT = 64 << 10
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
CLOSE = b"Connection: close\r\n\r\n"


@asynccontextmanager
async def connected(
    client: httpx2.AsyncClient,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    try:
        async with asyncio.timeout(30):
            yield reader, writer
    finally:
        writer.close()


async def send_parts(client: httpx2.AsyncClient, parts: Iterable[bytes]) -> bytes:
    """Sends the parts as fast as the server reads them; returns all bytes up to its close."""
    async with connected(client) as (reader, writer):
        answer = asyncio.create_task(reader.read())
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                if answer.done():
                    break
        except ConnectionError:
            pass  # the server refuses and closes while parts are still being sent
        return await answer


def head(size: int) -> bytes:
    """A complete head of `size` bytes."""
    return GET + b"X: " + b"a" * (size - len(GET) - 5 - len(CLOSE)) + b"\r\n" + CLOSE


def refused(answer: bytes) -> bool:
    return (
        answer.startswith(b"HTTP/1.1 431 ")
        and b"application/problem+json" in answer
        and b'"status":431' in answer
    )


async def test_a_head_of_64_kibibytes_is_accepted_and_one_byte_more_is_not(
    client: httpx2.AsyncClient,
) -> None:
    assert len(head(LIMIT)) == LIMIT
    assert (await send_parts(client, [head(LIMIT)])).startswith(b"HTTP/1.1 200 ")
    assert refused(await send_parts(client, [head(LIMIT + 1)]))


def endless(*, start: bytes, line: bytes) -> Iterable[bytes]:
    """A head of 64 MiB that never ends."""
    yield start
    for _ in range((64 << 20) // len(line)):
        yield line


@pytest.mark.parametrize(
    ("start", "line"),
    [
        (GET + b"X: ", b"a" * 4096),  # one line
        (GET, b"X: a\r\n" * 1000),  # lines
        (b"GET /", b"a" * 4096),
        (b"", b"\r\n" * 1000),  # blank lines before a request line
    ],
    ids=["line", "lines", "url", "blank"],
)
async def test_an_endless_head_is_refused(
    client: httpx2.AsyncClient, start: bytes, line: bytes
) -> None:
    assert refused(await send_parts(client, endless(start=start, line=line)))


async def test_heads_of_one_connection_are_counted_separately(
    client: httpx2.AsyncClient,
) -> None:
    one = head(LIMIT // 2).replace(CLOSE, b"X-Close: no-not-yet\r\n\r\n")
    async with connected(client) as (reader, writer):
        for _ in range(5):
            writer.write(one)
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(len(b'{"status":"ok"}'))
        writer.write(one * 5)  # pipelined heads are counted separately too
        for _ in range(5):
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(len(b'{"status":"ok"}'))
        writer.write(head(LIMIT + 1))
        assert refused(await reader.read())


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_does_not_count_towards_the_head(
    client: httpx2.AsyncClient, *, chunked: bool
) -> None:
    size = 8 << 20

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(0, size, 1000):
            yield b"x" * 1000

    answer = await client.post("/v1/files", content=pieces() if chunked else b"x" * size)
    assert answer.status_code == 201
    assert answer.json()["size"] >= size


async def test_endless_trailers_are_cut_off(client: httpx2.AsyncClient) -> None:
    start = (
        b"POST /v1/files HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\nx\r\n0\r\nX: "
    )
    answer = await send_parts(client, endless(start=start, line=b"a" * 4096))
    assert b" 201 " not in answer


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
async def test_an_unfinished_head_times_out(client: httpx2.AsyncClient) -> None:
    async with connected(client) as (reader, writer):
        writer.write(GET)
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer


@pytest.mark.usefixtures("impatient")
async def test_a_silent_connection_is_closed(client: httpx2.AsyncClient) -> None:
    async with connected(client) as (reader, _):
        assert await reader.read() == b""


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("part", "together"),
    [(b"GET /li", False), (b"\r\n", False), (b"GET /li", True), (GET + b"X: ", True)],
)
async def test_a_connection_with_an_unfinished_second_head_is_closed(
    client: httpx2.AsyncClient, part: bytes, *, together: bool
) -> None:
    async with connected(client) as (reader, writer):
        writer.write(GET + b"\r\n" + (part if together else b""))
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(b'{"status":"ok"}'))
        writer.write(b"" if together else part)
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.usefixtures("impatient")
async def test_idle_connections_and_slow_bodies_are_not_timed_out(
    client: httpx2.AsyncClient,
) -> None:
    async with connected(client) as (reader, writer):
        for _ in range(2):
            writer.write(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n1")
            async with connected(client) as (other, _):
                assert await other.read() == b""  # the head timeout has passed by now
            writer.write(b"2")
            assert b" 201 " in await reader.readuntil(b"\r\n\r\n")
            assert (await reader.readuntil(b"}")).endswith(b"}")
            async with connected(client) as (other, _):
                assert await other.read() == b""


@pytest.mark.usefixtures("impatient")
async def test_a_running_answer_is_not_cut_off_by_the_next_head(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    id = (await client.post("/v1/jobs", json={"task": "t.any"})).json()["id"]
    async with connected(client) as (reader, writer):
        writer.write(b"GET /v1/jobs/%s?wait=20 HTTP/1.1\r\nHost: x\r\n\r\nGET /li" % id.encode())
        claimed = await worker.claim()
        async with connected(client) as (other, _):
            assert await other.read() == b""
        await worker.succeed(claimed, "done")
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        assert b'"result":"done"' in await reader.readuntil(b'"links":')
        assert b"HTTP/1.1 408 " in await reader.read()
