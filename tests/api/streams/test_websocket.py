"""Many streams over one WebSocket: complete, ordered, resumable, paced, and bounded."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tandem_api.server import websocket as server_websocket
from tandem_api.streams import websocket
from tandem_shared.queue.messages import Claimed
from tests.api.fake_worker import FakeWorker
from tests.api.streams.test_http import channels, draining, read_stream, run_job, start_job
from tests.conftest import eventually

V1 = [Subprotocol("tandem.v1")]


@asynccontextmanager
async def opened(client: httpx2.AsyncClient, **options: Any) -> AsyncIterator[ClientConnection]:
    """Opens a WebSocket with the sub-protocol tandem.v1."""
    url = f"ws://{client.base_url.host}:{client.base_url.port}/v1/stream"
    async with connect(
        url, **{"subprotocols": V1, "proxy": None, "close_timeout": 1, **options}
    ) as socket:
        yield socket


async def send_request(socket: ClientConnection, **wish: Any) -> None:
    await socket.send(msgspec.json.encode(wish).decode())


async def receive(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(20):
        text = await socket.recv()
    assert isinstance(text, str)
    entry: dict[str, Any] = msgspec.json.decode(text)
    assert next(iter(entry)) == "job"
    return entry


async def read_until_ends(
    socket: ClientConnection, count: int = 1
) -> dict[str, list[dict[str, Any]]]:
    """Reads until `count` jobs have ended; returns their entries by job id."""
    entries: dict[str, list[dict[str, Any]]] = {}
    while count:
        entry = await receive(socket)
        entries.setdefault(entry.pop("job"), []).append(entry)
        count -= entry["type"] in ("end", "error")
    return entries


async def closed(socket: ClientConnection) -> tuple[int, str]:
    async with asyncio.timeout(20):
        await socket.wait_closed()
    return socket.close_code or 0, socket.close_reason or ""


async def read_to_close(socket: ClientConnection) -> None:
    """Reads the remaining messages up to the close."""
    with suppress(ConnectionClosed):
        while True:
            await receive(socket)


async def test_a_socket_delivers_the_same_entries_as_the_stream(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    id = await run_job(client, worker)
    async with opened(client) as socket:
        assert socket.subprotocol == "tandem.v1"
        assert socket.response is not None
        assert "sec-websocket-extensions" not in socket.response.headers
        await send_request(socket, subscribe=id)
        assert await read_until_ends(socket) == {id: await read_stream(client, id)}
        await send_request(socket, subscribe=id, after=None, types=["output"])
        assert await read_until_ends(socket) == {id: await read_stream(client, id, types="output")}


async def test_many_jobs_are_delivered_live_each_in_order(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    jobs = [await start_job(client, worker) for _ in range(30)]
    async with opened(client) as socket:
        for job in jobs:
            await send_request(socket, subscribe=job.id)
        live = asyncio.create_task(read_until_ends(socket, len(jobs)))
        for number in range(5):
            for job in jobs:
                await worker.report(job, "output", {"n": number}, {"n": number + 0.5})
        for job in jobs:
            await worker.succeed(job)
        entries = await live
    for job in jobs:
        assert entries[job.id] == await read_stream(client, job.id)


async def test_a_subscription_resumes_from_any_entry(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    id = await run_job(client, worker)
    entries = await read_stream(client, id)
    async with opened(client) as socket:
        for number, entry in enumerate(entries[:-1]):
            await send_request(socket, subscribe=id, after=entry["id"])
            assert await read_until_ends(socket) == {id: entries[number + 1 :]}
        await send_request(socket, subscribe=id, after=entries[-1]["id"])
        assert await read_until_ends(socket) == {id: entries[-1:]}, (
            "else nothing would say that nothing follows"
        )


async def test_consecutive_sockets_miss_and_repeat_nothing(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    job = await start_job(client, worker)
    seen: list[dict[str, Any]] = []
    for number in range(10):
        async with opened(client) as socket:
            await send_request(socket, subscribe=job.id, after=seen[-1]["id"] if seen else None)
            for part in range(3):
                await worker.report(job, "output", [number, part])
            seen += [await receive(socket) for _ in range(1 + number % 3)]
    await worker.succeed(job)
    async with opened(client) as socket:
        await send_request(socket, subscribe=job.id, after=seen[-1]["id"])
        seen += (await read_until_ends(socket))[job.id]
    assert [
        {name: entry[name] for name in entry if name != "job"} for entry in seen
    ] == await read_stream(client, job.id)


async def test_a_failed_subscription_leaves_the_others_intact(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    job = await start_job(client, worker)
    async with opened(client) as socket:
        await send_request(socket, subscribe=job.id, types=["output"])
        for wish, status in (
            ({"subscribe": "nobody"}, 404),
            ({"subscribe": 'a"b\nü'}, 404),
            ({"subscribe": await run_job(client, worker), "after": "9999999999999999-00000"}, 400),
            ({"subscribe": await run_job(client, worker), "after": "x" * 1000}, 400),
        ):
            await send_request(socket, **wish)
            error = await receive(socket)
            assert (error["job"], error["type"], error["data"]["status"]) == (
                wish["subscribe"],
                "error",
                status,
            )
            assert error["data"]["type"].startswith("/problems/")
        await worker.report(job, "output", 1)
        assert (await receive(socket))["data"] == 1


async def test_a_deleted_job_ends_its_subscription(
    client: httpx2.AsyncClient, worker: FakeWorker, redis: Redis
) -> None:
    job = await start_job(client, worker)
    async with opened(client) as socket:
        await send_request(socket, subscribe=job.id, types=["output"])
        await worker.report(job, "output", 1)
        await receive(socket)
        await redis.delete(f"{worker.queue.prefix}job:{job.id}")
        await redis.publish(f"{worker.queue.prefix}news:{job.id}", "gone")
        assert (await receive(socket))["data"]["status"] == 404


async def watched(redis: Redis) -> bool:
    return await channels(redis) > 0


async def unwatched(redis: Redis) -> bool:
    return await channels(redis) == 0


async def test_an_unsubscribed_job_sends_nothing(
    client: httpx2.AsyncClient, worker: FakeWorker, redis: Redis
) -> None:
    job, other = await start_job(client, worker), await start_job(client, worker)
    async with opened(client) as socket:
        await send_request(socket, unsubscribe="nobody")
        await send_request(socket, subscribe=job.id, types=["output"])
        await worker.report(job, "output", 1)
        assert (await receive(socket))["data"] == 1
        await eventually(lambda: watched(redis))
        await send_request(socket, unsubscribe=job.id)
        await eventually(lambda: unwatched(redis))
        await worker.report(job, "output", 2)
        await worker.succeed(job)
        await send_request(socket, subscribe=other.id, types=["output"])
        await worker.report(other, "output", 3)
        assert ((entry := await receive(socket))["job"], entry["data"]) == (other.id, 3)
    await eventually(lambda: unwatched(redis))


async def test_a_repeated_subscription_replaces_the_first(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    job = await start_job(client, worker)
    async with opened(client) as socket:
        await send_request(socket, subscribe=job.id, types=["output"])
        await worker.report(job, "output", 1)
        first = await receive(socket)
        for after in (None, None, first["id"]):
            await send_request(socket, subscribe=job.id, types=["output"], after=after)
        await worker.report(job, "output", 2)
        # Entries of the replaced subscription come first; the new one
        # continues after them.
        while (entry := await receive(socket))["data"] == 1:
            pass
        await worker.succeed(job)
        assert entry["data"] == 2
        assert [entry["type"] for entry in (await read_until_ends(socket))[job.id]][-1] == "end"


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        "[]",
        "null",
        '"subscribe"',
        "{}",
        b'{"subscribe":"x"}',
        '{"subscribe":1}',
        '{"subscribe":null}',
        '{"subscribe":"x","unsubscribe":"y"}',
        '{"unsubscribe":"x","after":"y"}',
        '{"subscribe":"x","more":1}',
        '{"subscribe":"x","types":["outputs"]}',
        '{"subscribe":"x","types":"output"}',
        '{"subscribe":"%s"}' % ("x" * 201),
        "[" * 50_000,
    ],
    ids=lambda message: message[:30],
)
async def test_an_invalid_message_closes_the_socket(
    client: httpx2.AsyncClient, worker: FakeWorker, message: str | bytes
) -> None:
    async with opened(client) as socket:
        await socket.send(message)
        code, reason = await closed(socket)
    assert code == 1008
    assert reason


async def test_a_message_is_bounded_in_size(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    async with opened(client) as socket:
        await socket.send(f'{{"subscribe":"x"{" " * (64 << 10)}}}')
        assert (await closed(socket))[0] == 1009
    async with opened(client) as socket:
        await socket.send(["{", *[""] * 100, "}"])
        assert (await closed(socket))[0] == 1009
    async with opened(client) as socket:
        await socket.send(b'"\xff"', text=True)
        assert (await closed(socket))[0] == 1007


async def test_a_message_may_be_fragmented(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    async with opened(client) as socket:
        await socket.send(['{"subscribe":', '"nobody"', "}"])
        assert (await receive(socket))["job"] == "nobody"


async def test_subscriptions_are_bounded(
    client: httpx2.AsyncClient, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "MAX_SUBSCRIPTIONS", 3)
    jobs = [await start_job(client, worker) for _ in range(5)]
    async with opened(client) as socket:
        for job in jobs[:4]:
            await send_request(socket, subscribe=job.id, types=["output"])
        error = await receive(socket)
        assert (error["job"], error["data"]["status"]) == (jobs[3].id, 429)
        await worker.succeed(jobs[0])
        assert set(await read_until_ends(socket)) == {jobs[0].id}
        await send_request(socket, subscribe=jobs[4].id, types=["output"])
        await worker.report(jobs[4], "output", 1)
        assert (await receive(socket))["job"] == jobs[4].id, (
            "a job whose stream has ended makes room"
        )
        for _ in range(20):
            await send_request(socket, subscribe=jobs[4].id, types=["output"])
        await worker.succeed(jobs[4])
        assert set(await read_until_ends(socket)) == {jobs[4].id}


async def test_a_verbose_job_leaves_room_for_others(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    loud = [await start_job(client, worker) for _ in range(websocket.MAX_READERS + 1)]
    quiet = await start_job(client, worker)
    for job in loud:
        for _ in range(60):  # 3.6 MB each
            await worker.report(job, "output", "x" * 60_000)
        await worker.succeed(job)
    await worker.report(quiet, "output", "here")
    # The reader pauses, so that every job is subscribed to before large output arrives.
    async with opened(client, max_queue=1) as socket:
        for job in [*loud, quiet]:
            await send_request(socket, subscribe=job.id, types=["output"])
        before = 0
        while (entry := await receive(socket))["job"] != quiet.id:
            before += entry["type"] == "end"
        assert before < len(loud), "its turn comes before they are done"
        await worker.succeed(quiet)
        while before < len(loud) + 1:
            before += (await receive(socket))["type"] == "end"


async def test_a_slow_reader_misses_nothing_and_delays_nobody(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    job = await start_job(client, worker)
    async with opened(client, max_queue=1) as slow, opened(client) as quick:
        await send_request(slow, subscribe=job.id, types=["output"])
        await send_request(quick, subscribe=job.id, types=["output"])
        for number in range(200):  # 12 MB, more than the socket buffers hold
            await worker.report(job, "output", f"{number:060000}")
        await worker.succeed(job)
        first = await read_until_ends(quick)
        assert len(first[job.id]) == 201
        assert await read_until_ends(slow) == first


async def test_a_socket_that_never_reads_is_closed(
    client: httpx2.AsyncClient, worker: FakeWorker, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_websocket, "STALLED_SECONDS", 0.1)
    job = await start_job(client, worker)
    async with opened(client, max_queue=1) as socket:
        await send_request(socket, subscribe=job.id, types=["output"])
        for _ in range(200):
            await worker.report(job, "output", "x" * 60_000)
        await eventually(lambda: unwatched(redis))
        await read_to_close(socket)
        assert await closed(socket) == (1006, "")


async def test_a_disconnected_socket_is_noticed(
    client: httpx2.AsyncClient, worker: FakeWorker, redis: Redis
) -> None:
    job = await start_job(client, worker)
    async with opened(client) as socket:
        await send_request(socket, subscribe=job.id)
        await receive(socket)
        await eventually(lambda: watched(redis))
        socket.transport.abort()
    await eventually(lambda: unwatched(redis))


async def test_a_shutdown_closes_sockets_with_a_code(
    redis_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    async with draining(redis_url, tmp_path) as (client, server, running):
        job: Claimed = await start_job(client, worker)
        async with opened(client) as socket, opened(client) as idle:
            await send_request(socket, subscribe=job.id)
            await receive(socket)
            server.should_exit = True
            await read_to_close(socket)
            assert [(await closed(one))[0] for one in (socket, idle)] == [1012, 1012]
        async with asyncio.timeout(20):
            await running


async def test_a_socket_opened_during_shutdown_is_turned_away(
    redis_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    async with draining(redis_url, tmp_path) as (client, server, _):
        # a proxy may still route a client here after readiness has failed
        server.config.app.drain.begin()
        async with opened(client) as socket:
            assert await closed(socket) == (1012, "the process is shutting down")
