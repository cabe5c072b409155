"""Many streams over one WebSocket: each whole, in order, from any place on, at the reader's pace, and bounded."""

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
from tests.api.fake_worker import Hand
from tests.api.streams.test_http import begun, channels, draining, finished, told
from tests.conftest import eventually

V1 = [Subprotocol("tandem.v1")]


@asynccontextmanager
async def opened(client: httpx2.AsyncClient, **options: Any) -> AsyncIterator[ClientConnection]:
    """A socket that speaks tandem.v1."""
    url = f"ws://{client.base_url.host}:{client.base_url.port}/v1/stream"
    async with connect(
        url, **{"subprotocols": V1, "proxy": None, "close_timeout": 1, **options}
    ) as socket:
        yield socket


async def ask(socket: ClientConnection, **wish: Any) -> None:
    await socket.send(msgspec.json.encode(wish).decode())


async def heard(socket: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(20):
        text = await socket.recv()
    assert isinstance(text, str)
    entry: dict[str, Any] = msgspec.json.decode(text)
    assert next(iter(entry)) == "job"
    return entry


async def until_ends(socket: ClientConnection, count: int = 1) -> dict[str, list[dict[str, Any]]]:
    """What comes until so many jobs are at their ends: by job, as it stands in a stream."""
    entries: dict[str, list[dict[str, Any]]] = {}
    while count:
        entry = await heard(socket)
        entries.setdefault(entry.pop("job"), []).append(entry)
        count -= entry["type"] in ("end", "error")
    return entries


async def closed(socket: ClientConnection) -> tuple[int, str]:
    async with asyncio.timeout(20):
        await socket.wait_closed()
    return socket.close_code or 0, socket.close_reason or ""


async def unread(socket: ClientConnection) -> None:
    """Takes what is still there, up to the close."""
    with suppress(ConnectionClosed):
        while True:
            await heard(socket)


async def test_a_socket_tells_what_the_stream_tells(client: httpx2.AsyncClient, hand: Hand) -> None:
    id = await finished(client, hand)
    async with opened(client) as socket:
        assert socket.subprotocol == "tandem.v1"
        assert socket.response is not None
        assert "sec-websocket-extensions" not in socket.response.headers
        await ask(socket, subscribe=id)
        assert await until_ends(socket) == {id: await told(client, id)}
        await ask(socket, subscribe=id, after=None, types=["output"])
        assert await until_ends(socket) == {id: await told(client, id, types="output")}


async def test_many_jobs_are_told_live_and_each_in_order(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    jobs = [await begun(client, hand) for _ in range(30)]
    async with opened(client) as socket:
        for job in jobs:
            await ask(socket, subscribe=job.id)
        live = asyncio.create_task(until_ends(socket, len(jobs)))
        for number in range(5):
            for job in jobs:
                await hand.say(job, "output", {"n": number}, {"n": number + 0.5})
        for job in jobs:
            await hand.succeed(job)
        entries = await live
    for job in jobs:
        assert entries[job.id] == await told(client, job.id)


async def test_any_place_is_gone_on_from(client: httpx2.AsyncClient, hand: Hand) -> None:
    id = await finished(client, hand)
    entries = await told(client, id)
    async with opened(client) as socket:
        for number, entry in enumerate(entries[:-1]):
            await ask(socket, subscribe=id, after=entry["id"])
            assert await until_ends(socket) == {id: entries[number + 1 :]}
        await ask(socket, subscribe=id, after=entries[-1]["id"])
        assert await until_ends(socket) == {id: entries[-1:]}, (
            "else nothing would say that nothing follows"
        )


async def test_one_socket_after_another_misses_and_repeats_nothing(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    job = await begun(client, hand)
    seen: list[dict[str, Any]] = []
    for number in range(10):
        async with opened(client) as socket:
            await ask(socket, subscribe=job.id, after=seen[-1]["id"] if seen else None)
            for part in range(3):
                await hand.say(job, "output", [number, part])
            seen += [await heard(socket) for _ in range(1 + number % 3)]
    await hand.succeed(job)
    async with opened(client) as socket:
        await ask(socket, subscribe=job.id, after=seen[-1]["id"])
        seen += (await until_ends(socket))[job.id]
    assert [{name: entry[name] for name in entry if name != "job"} for entry in seen] == await told(
        client, job.id
    )


async def test_what_cannot_be_told_costs_only_itself(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    job = await begun(client, hand)
    async with opened(client) as socket:
        await ask(socket, subscribe=job.id, types=["output"])
        for wish, status in (
            ({"subscribe": "nobody"}, 404),
            ({"subscribe": 'a"b\nü'}, 404),
            ({"subscribe": await finished(client, hand), "after": "9999999999999999-00000"}, 400),
            ({"subscribe": await finished(client, hand), "after": "x" * 1000}, 400),
        ):
            await ask(socket, **wish)
            error = await heard(socket)
            assert (error["job"], error["type"], error["data"]["status"]) == (
                wish["subscribe"],
                "error",
                status,
            )
            assert error["data"]["type"].startswith("/problems/")
        await hand.say(job, "output", 1)
        assert (await heard(socket))["data"] == 1


async def test_a_job_that_goes_is_told_so(
    client: httpx2.AsyncClient, hand: Hand, redis: Redis
) -> None:
    job = await begun(client, hand)
    async with opened(client) as socket:
        await ask(socket, subscribe=job.id, types=["output"])
        await hand.say(job, "output", 1)
        await heard(socket)
        await redis.delete(f"{hand.queue.prefix}job:{job.id}")
        await redis.publish(f"{hand.queue.prefix}news:{job.id}", "gone")
        assert (await heard(socket))["data"]["status"] == 404


async def watched(redis: Redis) -> bool:
    return await channels(redis) > 0


async def unwatched(redis: Redis) -> bool:
    return await channels(redis) == 0


async def test_an_unsubscribed_job_is_not_told_of(
    client: httpx2.AsyncClient, hand: Hand, redis: Redis
) -> None:
    job, other = await begun(client, hand), await begun(client, hand)
    async with opened(client) as socket:
        await ask(socket, unsubscribe="nobody")
        await ask(socket, subscribe=job.id, types=["output"])
        await hand.say(job, "output", 1)
        assert (await heard(socket))["data"] == 1
        await eventually(lambda: watched(redis))
        await ask(socket, unsubscribe=job.id)
        await eventually(lambda: unwatched(redis))
        await hand.say(job, "output", 2)
        await hand.succeed(job)
        await ask(socket, subscribe=other.id, types=["output"])
        await hand.say(other, "output", 3)
        assert ((entry := await heard(socket))["job"], entry["data"]) == (other.id, 3)
    await eventually(lambda: unwatched(redis))


async def test_who_subscribes_again_goes_on_from_there(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    job = await begun(client, hand)
    async with opened(client) as socket:
        await ask(socket, subscribe=job.id, types=["output"])
        await hand.say(job, "output", 1)
        first = await heard(socket)
        for after in (None, None, first["id"]):
            await ask(socket, subscribe=job.id, types=["output"], after=after)
        await hand.say(job, "output", 2)
        # What the first of them told before the next took its place comes first; the last one
        # begins behind it.
        while (entry := await heard(socket))["data"] == 1:
            pass
        await hand.succeed(job)
        assert entry["data"] == 2
        assert [entry["type"] for entry in (await until_ends(socket))[job.id]][-1] == "end"


@pytest.mark.parametrize(
    "message",
    [
        "", "{", "[]", "null", '"subscribe"', "{}", b'{"subscribe":"x"}', '{"subscribe":1}', '{"subscribe":null}',
        '{"subscribe":"x","unsubscribe":"y"}', '{"unsubscribe":"x","after":"y"}', '{"subscribe":"x","more":1}',
        '{"subscribe":"x","types":["outputs"]}', '{"subscribe":"x","types":"output"}',
        '{"subscribe":"%s"}' % ("x" * 201),
        "[" * 50_000,
    ],
    ids=lambda message: message[:30],
)  # fmt: skip
async def test_a_bad_message_ends_the_socket(
    client: httpx2.AsyncClient, hand: Hand, message: str | bytes
) -> None:
    async with opened(client) as socket:
        await socket.send(message)
        code, reason = await closed(socket)
    assert code == 1008
    assert reason


async def test_a_message_has_its_limits(client: httpx2.AsyncClient, hand: Hand) -> None:
    async with opened(client) as socket:
        await socket.send(f'{{"subscribe":"x"{" " * (64 << 10)}}}')
        assert (await closed(socket))[0] == 1009
    async with opened(client) as socket:
        await socket.send(["{", *[""] * 100, "}"])
        assert (await closed(socket))[0] == 1009
    async with opened(client) as socket:
        await socket.send(b'"\xff"', text=True)
        assert (await closed(socket))[0] == 1007


async def test_a_message_may_come_in_parts(client: httpx2.AsyncClient, hand: Hand) -> None:
    async with opened(client) as socket:
        await socket.send(['{"subscribe":', '"nobody"', "}"])
        assert (await heard(socket))["job"] == "nobody"


async def test_subscriptions_are_bounded(
    client: httpx2.AsyncClient, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "MAX_SUBSCRIPTIONS", 3)
    jobs = [await begun(client, hand) for _ in range(5)]
    async with opened(client) as socket:
        for job in jobs[:4]:
            await ask(socket, subscribe=job.id, types=["output"])
        error = await heard(socket)
        assert (error["job"], error["data"]["status"]) == (jobs[3].id, 429)
        await hand.succeed(jobs[0])
        assert set(await until_ends(socket)) == {jobs[0].id}
        await ask(socket, subscribe=jobs[4].id, types=["output"])
        await hand.say(jobs[4], "output", 1)
        assert (await heard(socket))["job"] == jobs[4].id, (
            "a job that is told to its end makes room"
        )
        for _ in range(20):
            await ask(socket, subscribe=jobs[4].id, types=["output"])
        await hand.succeed(jobs[4])
        assert set(await until_ends(socket)) == {jobs[4].id}


async def test_one_that_says_much_leaves_room_for_others(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    loud = [await begun(client, hand) for _ in range(websocket.MAX_READERS + 1)]
    quiet = await begun(client, hand)
    for job in loud:
        for _ in range(60):  # 3.6 MB each
            await hand.say(job, "output", "x" * 60_000)
        await hand.succeed(job)
    await hand.say(quiet, "output", "here")
    # One that reads nothing for now: all are subscribed to before anything much is told.
    async with opened(client, max_queue=1) as socket:
        for job in [*loud, quiet]:
            await ask(socket, subscribe=job.id, types=["output"])
        before = 0
        while (entry := await heard(socket))["job"] != quiet.id:
            before += entry["type"] == "end"
        assert before < len(loud), "its turn comes before they are done"
        await hand.succeed(quiet)
        while before < len(loud) + 1:
            before += (await heard(socket))["type"] == "end"


async def test_one_that_reads_slowly_misses_nothing_and_holds_up_nobody(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    job = await begun(client, hand)
    async with opened(client, max_queue=1) as slow, opened(client) as quick:
        await ask(slow, subscribe=job.id, types=["output"])
        await ask(quick, subscribe=job.id, types=["output"])
        for number in range(200):  # 12 MB, more than sockets hold
            await hand.say(job, "output", f"{number:060000}")
        await hand.succeed(job)
        first = await until_ends(quick)
        assert len(first[job.id]) == 201
        assert await until_ends(slow) == first


async def test_one_that_does_not_read_at_all_is_given_up(
    client: httpx2.AsyncClient, hand: Hand, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_websocket, "STALLED_SECONDS", 0.1)
    job = await begun(client, hand)
    async with opened(client, max_queue=1) as socket:
        await ask(socket, subscribe=job.id, types=["output"])
        for _ in range(200):
            await hand.say(job, "output", "x" * 60_000)
        await eventually(lambda: unwatched(redis))
        await unread(socket)
        assert await closed(socket) == (1006, "")


async def test_one_that_leaves_is_noticed(
    client: httpx2.AsyncClient, hand: Hand, redis: Redis
) -> None:
    job = await begun(client, hand)
    async with opened(client) as socket:
        await ask(socket, subscribe=job.id)
        await heard(socket)
        await eventually(lambda: watched(redis))
        socket.transport.abort()
    await eventually(lambda: unwatched(redis))


async def test_the_end_of_the_service_is_told(redis_url: str, hand: Hand, tmp_path: Path) -> None:
    async with draining(redis_url, tmp_path) as (client, server, running):
        job: Claimed = await begun(client, hand)
        async with opened(client) as socket, opened(client) as idle:
            await ask(socket, subscribe=job.id)
            await heard(socket)
            server.should_exit = True
            await unread(socket)
            assert [(await closed(one))[0] for one in (socket, idle)] == [1012, 1012]
        async with asyncio.timeout(20):
            await running


async def test_who_comes_while_the_service_ends_is_sent_on(
    redis_url: str, hand: Hand, tmp_path: Path
) -> None:
    async with draining(redis_url, tmp_path) as (client, server, _):
        # as a proxy may still send somebody once readiness has failed
        server.config.app.drain.begin()
        async with opened(client) as socket:
            assert await closed(socket) == (1012, "the service is ending")
