"""POST /v1/jobs/bulk: results in order, independent items, bounded arrays, unbounded lines."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from tandem_api.jobs import bulk, spool
from tandem_shared.queue.queue import Queue
from tests.api.fake_worker import FakeWorker
from tests.api.serving import problem, serving
from tests.conftest import eventually

LINES = {"content-type": "application/x-ndjson"}
JOB: dict[str, Any] = {"task": "t.any", "payload": {}}
ITEMS: list[Any] = [
    JOB,
    {"task": "t.nope"},
    7,
    {"task": "t.strict", "payload": {}},
    {**JOB, "idempotency_key": "one"},
    {**JOB, "idempotency_key": "one"},
    {"task": "t.any", "payload": {"other": 1}, "idempotency_key": "one"},
    {**JOB, "idempotency_key": "ü" * 200},
    {**JOB, "idempotency_key": None},
    {"task": "t.any", "payload": {"a": "x" * (1 << 20)}},
    JOB,
]
STATUSES = [0, 422, 422, 422, 0, 0, 422, 422, 0, 413, 0]  # 0: an id


def lines(answer: httpx2.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [msgspec.json.decode(line) for line in answer.content.splitlines()]


def statuses(answers: list[Any]) -> list[int]:
    assert all(set(one) in ({"id"}, {"error"}) for one in answers)
    return [one["error"]["status"] if "error" in one else 0 for one in answers]


async def queued(queue: Queue) -> int:
    return sum(one.queued for one in await queue.stats())


async def test_items_of_an_array_fail_independently(
    client: httpx2.AsyncClient, queue: Queue
) -> None:
    answer = await client.post("/v1/jobs/bulk", json=ITEMS)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    results = answer.json()
    assert statuses(results) == STATUSES
    assert results[3]["error"]["errors"] == [{"pointer": "/payload/url", "detail": "is required"}]
    assert results[6]["error"]["type"] == "/problems/idempotency-key-reused"
    assert results[7]["error"]["errors"][0]["pointer"] == "/idempotency_key"
    assert results[4] == results[5]
    assert len({one["id"] for one in results if "id" in one}) == 4
    assert await queued(queue) == 4


async def test_an_item_of_65_levels_leaves_the_others_intact(client: httpx2.AsyncClient) -> None:
    deep = msgspec.Raw(b'{"task":"t.any","payload":' + b'{"a":' * 64 + b"1" + b"}" * 65)
    body = msgspec.json.encode([JOB, deep, JOB])
    answer = await client.post(
        "/v1/jobs/bulk", content=body, headers={"content-type": "application/json"}
    )
    first, refused, last = answer.json()
    assert set(first) == set(last) == {"id"}
    assert refused["error"]["errors"] == [
        {"pointer": "", "detail": "is nested more than 64 levels deep"}
    ]


@pytest.mark.parametrize("size", [1 << 30, 60_000, 1000])
async def test_lines_fail_independently_however_they_are_chunked(
    client: httpx2.AsyncClient, queue: Queue, size: int
) -> None:
    body = b"\n\r\n  \n".join(msgspec.json.encode(item) for item in ITEMS[:9])
    body += b"\n{broken\n" + b"\n".join(msgspec.json.encode(item) for item in ITEMS[9:])

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    results = lines(await client.post("/v1/jobs/bulk", content=pieces(), headers=LINES))
    assert statuses(results) == [*STATUSES[:9], 400, *STATUSES[9:]]
    assert await queued(queue) == 4


async def test_every_item_carries_the_traceparent(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    trace = f"00-{'1' * 32}-{'2' * 16}-00"
    results = (
        await client.post("/v1/jobs/bulk", json=[JOB], headers={"traceparent": trace})
    ).json()
    assert (await worker.record(results[0]["id"])).options.traceparent == trace


async def test_ten_thousand_fit_and_one_more_does_not(
    client: httpx2.AsyncClient, queue: Queue
) -> None:
    results = (await client.post("/v1/jobs/bulk", json=[JOB] * 10_000)).json()
    assert len({one["id"] for one in results}) == 10_000
    assert await queued(queue) == 10_000
    answer = await client.post("/v1/jobs/bulk", json=[JOB] * 10_001)
    assert problem(answer) == (413, "the array exceeds the limit of 10000 items")
    assert await queued(queue) == 10_000


async def test_an_array_above_64_mebibytes_is_too_large_before_it_is_read(
    client: httpx2.AsyncClient,
) -> None:
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    size = (64 << 20) + 1
    writer.write(b"POST /v1/jobs/bulk HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n" % size)
    async with asyncio.timeout(20):
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        assert b"application/problem+json" in await reader.readuntil(b"\r\n\r\n")
    writer.close()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[", 400),
        (b"[{},]", 400),
        (b"{}", 422),
        (b'"x"', 422),
        (b"7", 422),
        (b"[" * 100_000, 422),
        (
            b'[{"task":"t.any"},{"task":"t.any","payload":'
            + b'{"a":' * 100_000
            + b"1"
            + b"}" * 100_001
            + b"]",
            422,
        ),
    ],
)
async def test_a_body_that_is_not_an_array_is_refused(
    client: httpx2.AsyncClient, body: bytes, status: int
) -> None:
    answer = await client.post(
        "/v1/jobs/bulk", content=body, headers={"content-type": "application/json"}
    )
    assert problem(answer)[0] == status


async def test_an_empty_batch_gets_an_empty_answer(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/v1/jobs/bulk", json=[])).json() == []
    assert lines(await client.post("/v1/jobs/bulk", content=b"", headers=LINES)) == []
    assert lines(await client.post("/v1/jobs/bulk", content=b"\n \n", headers=LINES)) == []


async def test_an_idempotency_key_for_the_whole_batch_is_refused(
    client: httpx2.AsyncClient,
) -> None:
    answer = await client.post("/v1/jobs/bulk", json=[JOB], headers={"Idempotency-Key": "k"})
    assert problem(answer)[0] == 400


@asynccontextmanager
async def piecemeal(
    client: httpx2.AsyncClient,
) -> AsyncIterator[tuple[asyncio.StreamReader, Callable[[bytes], None]]]:
    """Opens a chunked bulk request; yields its reader and a function that sends chunks."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(
        b"POST /v1/jobs/bulk HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    async with asyncio.timeout(20):
        yield reader, lambda chunk: writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
    writer.close()


async def test_lines_are_answered_once_all_have_come(
    client: httpx2.AsyncClient, queue: Queue
) -> None:
    async with piecemeal(client) as (reader, send):
        for number in range(3):
            send(b'{"task":"t.any","payload":{"n":%d}}\n' % number)
            await eventually(partial(has_queued, queue, number + 1))
        answer = asyncio.create_task(reader.readuntil(b"0\r\n\r\n"))
        await client.get("/livez")
        assert not answer.done()
        send(b"")
        assert (await answer).count(b'{"id":"') == 3


async def has_queued(queue: Queue, count: int) -> bool:
    return await queued(queue) == count


async def test_lines_that_never_end_get_the_answers_to_those_that_came(
    client: httpx2.AsyncClient, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "IDLE_SECONDS", 0.2)
    async with piecemeal(client) as (reader, send):
        send(b'{"task":"t.any"}\n' * 2 + b"{")
        answer = await reader.read()
    assert answer.count(b'{"id":"') == await queued(queue) == 2
    assert not answer.endswith(b"0\r\n\r\n")


async def test_a_client_that_never_reads_takes_no_more_than_the_spool(
    redis_url: str, worker: FakeWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stops reading lines; it goes on when the client reads answers."""
    limit = 1 << 20
    async with (
        serving(redis_url, tmp_path, bulk_spool=limit) as client,
        piecemeal(client) as (
            reader,
            send,
        ),
    ):
        written: list[int] = []
        write = spool.AnswerSpool._write

        def counting(answers: spool.AnswerSpool, data: bytes) -> bytes:
            written.append(len(data))
            assert answers._written - answers._sent + len(data) <= limit
            return write(answers, data)

        monkeypatch.setattr(spool.AnswerSpool, "_write", counting)
        lines, sent = b"x\n" * 30_000, 2
        for _ in range(sent):
            send(lines)
        await eventually(lambda: sum(written) >= limit)
        assert b"HTTP/1.1 200 " in await reader.readline()  # it has begun
        send(b"")
        answer = bytearray()
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            answer += await reader.read(1 << 20)
        assert answer.count(b"\n{") == 30_000 * sent  # each answer is preceded by a line end
        assert sum(written) > 5 * limit


async def test_each_line_fails_separately_when_redis_is_down_mid_answer(
    tmp_path: Path,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening: connections are refused
        async with (
            serving(f"redis://127.0.0.1:{taken.getsockname()[1]}/0", tmp_path) as client,
            piecemeal(client) as (reader, send),
        ):
            send(b"7\n")  # refused by validation, before Redis is needed
            await client.get("/livez")  # the line has been read
            send(b'{"task":"t.any"}\n' * 2)
            send(b"")
            assert b'"status":422' in await reader.readuntil(b"}}\n")
            for _ in range(2):
                assert b'"status":503' in await reader.readuntil(b"}}\n")
            assert (await reader.readuntil(b"0\r\n\r\n")).endswith(b"0\r\n\r\n")


async def test_a_client_that_reads_last_gets_every_answer(
    client: httpx2.AsyncClient, queue: Queue
) -> None:
    """The answers exceed the socket buffers, so the server must not block on writing them."""
    count = 60_000
    bad = b'{"task":"t.any","this_field_is_unknown":1}\n'

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(0, count, 1000):
            yield bad * 1000

    results = lines(
        await client.post("/v1/jobs/bulk", content=pieces(), headers=LINES, timeout=100)
    )
    assert statuses(results) == [422] * count
