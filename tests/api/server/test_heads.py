"""The head of a request is bounded in size and in time, whoever sends it, and a body counts for neither."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import httpx2
import pytest

from tandem_api.server import http
from tests.api.fake_worker import Hand

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


async def told(client: httpx2.AsyncClient, parts: Iterable[bytes]) -> bytes:
    """What comes back up to the end of the connection, for parts that are sent as fast as they are taken."""
    async with connected(client) as (reader, writer):
        answer = asyncio.create_task(reader.read())
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
                if answer.done():
                    break
        except ConnectionError:
            pass  # it is refused while we still send
        return await answer


def head(size: int) -> bytes:
    """A whole head of this many bytes."""
    return GET + b"X: " + b"a" * (size - len(GET) - 5 - len(CLOSE)) + b"\r\n" + CLOSE


def refused(answer: bytes) -> bool:
    return (
        answer.startswith(b"HTTP/1.1 431 ")
        and b"application/problem+json" in answer
        and b'"status":431' in answer
    )


async def test_a_head_of_64_kibibytes_is_taken_and_one_byte_more_is_not(
    client: httpx2.AsyncClient,
) -> None:
    assert len(head(LIMIT)) == LIMIT
    assert (await told(client, [head(LIMIT)])).startswith(b"HTTP/1.1 200 ")
    assert refused(await told(client, [head(LIMIT + 1)]))


def endless(*, start: bytes, line: bytes) -> Iterable[bytes]:
    """64 MiB of one head, which has no end."""
    yield start
    for _ in range((64 << 20) // len(line)):
        yield line


@pytest.mark.parametrize(
    ("start", "line"),
    [
        (GET + b"X: ", b"a" * 4096),  # one line
        (GET, b"X: a\r\n" * 1000),  # lines
        (b"GET /", b"a" * 4096),
        (b"", b"\r\n" * 1000),  # nothing at all
    ],
    ids=["line", "lines", "url", "blank"],
)
async def test_a_head_without_end_is_refused(
    client: httpx2.AsyncClient, start: bytes, line: bytes
) -> None:
    assert refused(await told(client, endless(start=start, line=line)))


async def test_the_heads_of_one_connection_are_counted_each_for_itself(
    client: httpx2.AsyncClient,
) -> None:
    one = head(LIMIT // 2).replace(CLOSE, b"X-Close: no-not-yet\r\n\r\n")
    async with connected(client) as (reader, writer):
        for _ in range(5):
            writer.write(one)
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(len(b'{"status":"ok"}'))
        writer.write(one * 5)  # and so when they come together
        for _ in range(5):
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(len(b'{"status":"ok"}'))
        writer.write(head(LIMIT + 1))
        assert refused(await reader.read())


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_does_not_count(client: httpx2.AsyncClient, *, chunked: bool) -> None:
    size = 8 << 20

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(0, size, 1000):
            yield b"x" * 1000

    answer = await client.post("/v1/files", content=pieces() if chunked else b"x" * size)
    assert answer.status_code == 201
    assert answer.json()["size"] >= size


async def test_trailers_without_end_are_cut(client: httpx2.AsyncClient) -> None:
    start = b"POST /v1/files HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: "
    answer = await told(client, endless(start=start, line=b"a" * 4096))
    assert b" 201 " not in answer


# --------------------------------------------------------------------------------------------- time


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
async def test_a_head_that_does_not_end_is_given_up(client: httpx2.AsyncClient) -> None:
    async with connected(client) as (reader, writer):
        writer.write(GET)
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer


@pytest.mark.usefixtures("impatient")
async def test_a_connection_on_which_nothing_comes_is_closed(client: httpx2.AsyncClient) -> None:
    async with connected(client) as (reader, _):
        assert await reader.read() == b""


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("part", "together"),
    [(b"GET /li", False), (b"\r\n", False), (b"GET /li", True), (GET + b"X: ", True)],
)
async def test_so_is_one_whose_next_head_does_not_end(
    client: httpx2.AsyncClient, part: bytes, *, together: bool
) -> None:
    async with connected(client) as (reader, writer):
        writer.write(GET + b"\r\n" + (part if together else b""))
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(b'{"status":"ok"}'))
        writer.write(b"" if together else part)
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.usefixtures("impatient")
async def test_nobody_is_hurried_between_requests_or_in_a_body(client: httpx2.AsyncClient) -> None:
    async with connected(client) as (reader, writer):
        for _ in range(2):
            writer.write(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n1")
            async with connected(client) as (other, _):
                assert await other.read() == b""  # by now the time of a head is over
            writer.write(b"2")
            assert b" 201 " in await reader.readuntil(b"\r\n\r\n")
            assert (await reader.readuntil(b"}")).endswith(b"}")
            async with connected(client) as (other, _):
                assert await other.read() == b""


@pytest.mark.usefixtures("impatient")
async def test_an_answer_under_way_is_not_cut_for_the_next_head(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    id = (await client.post("/v1/jobs", json={"task": "t.any"})).json()["id"]
    async with connected(client) as (reader, writer):
        writer.write(b"GET /v1/jobs/%s?wait=20 HTTP/1.1\r\nHost: x\r\n\r\nGET /li" % id.encode())
        claimed = await hand.take()
        async with connected(client) as (other, _):
            assert await other.read() == b""
        await hand.succeed(claimed, "done")
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        assert b'"result":"done"' in await reader.readuntil(b'"links":')
        assert b"HTTP/1.1 408 " in await reader.read()
