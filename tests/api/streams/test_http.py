"""A stream over HTTP: live, in each format, resumed anywhere, and bounded for slow readers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from redis.asyncio import Redis

from tandem_api.app import create_app
from tandem_api.server.process import make_server
from tandem_api.server.sockets import listen
from tandem_shared.jobs.states import State
from tandem_shared.settings import load_settings
from tests.api.fake_worker import FakeWorker
from tests.api.serving import problem, serving
from tests.conftest import eventually

NDJSON = {"Accept": "application/x-ndjson"}
CSV = {"Accept": "text/csv"}


async def start_job(client: httpx2.AsyncClient, worker: FakeWorker) -> Any:
    """Submits a job and claims it."""
    answer = await client.post("/v1/jobs", json={"task": "t.any", "payload": {"secret": 1}})
    assert answer.status_code == 202
    return await worker.claim()


async def read_stream(client: httpx2.AsyncClient, id: str, **query: str) -> list[dict[str, Any]]:
    """Reads a whole stream as NDJSON."""
    answer = await client.get(f"/v1/jobs/{id}/stream", headers=NDJSON, params=query)
    assert answer.status_code == 200, answer.text
    return [msgspec.json.decode(line) for line in answer.content.splitlines() if line]


async def run_job(client: httpx2.AsyncClient, worker: FakeWorker) -> str:
    """Runs a job that reports one entry of each kind and succeeds; returns its id."""
    claimed = await start_job(client, worker)
    await worker.report(
        claimed, "output", {"a": 1, "b": "x,y"}, {"b": "two\nlines", "c": 3, "a": None}
    )
    await worker.report(claimed, "progress", {"current": 1, "total": 2, "message": "half"})
    await worker.report(claimed, "log", {"level": "info", "message": "here"})
    await worker.report(claimed, "output", {"a": 12345678901234567890123, "b": {"deep": [1, True]}})
    await worker.succeed(claimed, {"n": 3})
    id: str = claimed.id
    return id


KINDS = ["state", "state", "output", "output", "progress", "log", "output", "state", "end"]


async def test_lines_contain_every_entry_in_order_and_end(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    id = await run_job(client, worker)
    entries = await read_stream(client, id)
    assert [entry["type"] for entry in entries] == KINDS
    assert all(list(entry) == ["id", "type", "attempt", "at", "data"] for entry in entries)
    assert [entry["data"]["state"] for entry in entries if entry["type"] == "state"] == [
        "queued",
        "running",
        "succeeded",
    ]
    assert entries[-1]["data"] == (await client.get(f"/v1/jobs/{id}")).json()
    assert [entry["id"] for entry in entries] == sorted({entry["id"] for entry in entries})
    assert all(isinstance(entry["id"], str) for entry in entries)
    assert "secret" not in str(entries)


@pytest.mark.parametrize("accept", [None, "*/*", "text/event-stream", "text/*;q=0.5, image/png"])
async def test_events_follow_the_event_source_format(
    client: httpx2.AsyncClient, worker: FakeWorker, accept: str | None
) -> None:
    id = await run_job(client, worker)
    headers = {} if accept is None else {"Accept": accept}
    answer = await client.get(f"/v1/jobs/{id}/stream", headers=headers)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["vary"] == "Accept"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    # Every block has data: some clients hand a block without it to the application.
    events = answer.text.removeprefix("retry: 3000\n").removesuffix("\n\n").split("\n\n")
    for event, entry in zip(events, await read_stream(client, id), strict=True):
        name, type, data = (line.partition(": ") for line in event.split("\n"))
        assert (name[0], name[2]) == ("id", entry["id"])
        assert (type[0], type[2]) == ("event", entry["type"])
        assert (data[0], msgspec.json.decode(data[2])) == ("data", entry)


@pytest.mark.parametrize(
    "accept", ["application/jsonl", "application/x-ndjson, */*;q=0.1", "application/*"]
)
async def test_lines_are_served_under_either_media_type(
    client: httpx2.AsyncClient, worker: FakeWorker, accept: str
) -> None:
    answer = await client.get(
        f"/v1/jobs/{await run_job(client, worker)}/stream", headers={"Accept": accept}
    )
    assert answer.headers["content-type"] in ("application/jsonl", "application/x-ndjson")
    assert answer.content.splitlines()[-1].startswith(b'{"id":')


async def test_a_stream_resumes_from_any_entry_in_every_format(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    id = await run_job(client, worker)
    entries = await read_stream(client, id)
    for number, entry in enumerate(entries[:-1]):
        assert await read_stream(client, id, after=entry["id"]) == entries[number + 1 :]
    headers = {"Last-Event-ID": entries[3]["id"]}
    answer = await client.get(
        f"/v1/jobs/{id}/stream", params={"after": entries[0]["id"]}, headers=headers
    )
    assert answer.text.count("\nid: ") == len(entries) - 4, "what a browser has seen since counts"
    for accept in ("text/event-stream", "application/jsonl", "text/csv"):
        answer = await client.get(
            f"/v1/jobs/{id}/stream",
            params={"after": entries[-1]["id"], "types": "output"},
            headers={"Accept": accept},
        )
        assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize(
    "after", ["nope", "0000000000000001-00000", "9999999999999999-00000", "x" * 100]
)
async def test_an_unknown_entry_id_is_malformed(
    client: httpx2.AsyncClient, worker: FakeWorker, after: str
) -> None:
    id = await run_job(client, worker)
    assert problem(await client.get(f"/v1/jobs/{id}/stream", params={"after": after}))[0] == 400
    assert (
        problem(await client.get(f"/v1/jobs/{id}/stream", headers={"Last-Event-ID": after}))[0]
        == 400
    )


async def test_types_filter_the_stream(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    id = await run_job(client, worker)
    for types in ("output", "state,log", "progress"):
        kinds = [entry["type"] for entry in await read_stream(client, id, types=types)]
        assert kinds == [kind for kind in KINDS if kind in (*types.split(","), "end")]
    assert problem(await client.get(f"/v1/jobs/{id}/stream?types=outputs"))[0] == 400


@pytest.mark.parametrize(
    ("accept", "query"),
    [("image/png", ""), ("text/csv", ""), ("text/csv", "?types=output,log"), ("*/*;q=0", "")],
)
async def test_an_unknown_format_is_not_acceptable(
    client: httpx2.AsyncClient, worker: FakeWorker, accept: str, query: str
) -> None:
    id = await run_job(client, worker)
    answer = await client.get(f"/v1/jobs/{id}/stream{query}", headers={"Accept": accept})
    assert problem(answer)[0] == 406
    assert answer.headers["vary"] == "Accept"


async def test_output_as_a_table(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    id = await run_job(client, worker)
    answer = await client.get(f"/v1/jobs/{id}/stream?types=output", headers=CSV)
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.text == (
        'a,b\r\n1,"x,y"\r\n,"two\nlines"\r\n12345678901234567890123,"{""deep"":[1,true]}"\r\n'
    )
    place = (await read_stream(client, id))[3]["id"]
    answer = await client.get(f"/v1/jobs/{id}/stream?types=output&after={place}", headers=CSV)
    assert problem(answer)[0] == 400


async def test_an_incomplete_table_is_cut_off(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    claimed = await start_job(client, worker)
    await worker.report(claimed, "output", {"a": 1})
    await worker.fail(claimed)
    async with client.stream(
        "GET", f"/v1/jobs/{claimed.id}/stream?types=output", headers=CSV
    ) as answer:
        rows = answer.aiter_bytes()
        assert await anext(rows) == b"a\r\n1\r\n"
        with pytest.raises(httpx2.RemoteProtocolError):
            await anext(rows)


async def test_a_table_has_only_the_rows_of_the_attempt_that_counts(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    claimed = await start_job(client, worker)
    await worker.report(claimed, "output", {"a": 1})
    await worker.fail(claimed, State.RETRYING)
    await worker.queue.tick()
    again = await worker.claim()
    await worker.report(again, "output", {"a": 2})
    await worker.succeed(again)
    assert (
        await client.get(f"/v1/jobs/{claimed.id}/stream?types=output", headers=CSV)
    ).text == "a\r\n2\r\n"
    attempts = [
        (entry["attempt"], entry["data"])
        for entry in await read_stream(client, claimed.id, types="output")
    ]
    assert attempts[:2] == [(1, {"a": 1}), (2, {"a": 2})]


async def test_a_started_table_is_cut_off_by_another_attempt(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    claimed = await start_job(client, worker)
    await worker.report(claimed, "output", {"a": 1})
    async with client.stream(
        "GET", f"/v1/jobs/{claimed.id}/stream?types=output", headers=CSV
    ) as answer:
        rows = answer.aiter_bytes()
        assert await anext(rows) == b"a\r\n1\r\n"
        await worker.fail(claimed, State.RETRYING)
        await worker.queue.tick()
        await worker.report(await worker.claim(), "output", {"a": 1})
        with pytest.raises(httpx2.RemoteProtocolError):
            await anext(rows)


async def test_entries_arrive_as_they_are_reported(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    claimed = await start_job(client, worker)
    async with (
        asyncio.timeout(20),
        client.stream(
            "GET", f"/v1/jobs/{claimed.id}/stream?types=output,log", headers=NDJSON
        ) as answer,
    ):
        lines = answer.aiter_lines()
        for number in range(5):
            await worker.report(claimed, "output", number)
            assert msgspec.json.decode(await anext(lines))["data"] == number
        await worker.report(claimed, "log", {"message": "x"})
        assert msgspec.json.decode(await anext(lines))["type"] == "log"
        await worker.succeed(claimed)
        assert msgspec.json.decode(await anext(lines))["type"] == "end"
        with pytest.raises(StopAsyncIteration):
            await anext(lines)


async def test_live_and_late_readers_see_the_same(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    claimed = await start_job(client, worker)
    live = [asyncio.create_task(read_stream(client, claimed.id)) for _ in range(5)]
    for number in range(300):
        kind = ("output", "log", "progress")[number % 3]
        await worker.report(
            claimed, kind, *([{"n": number}] * (1 + number % 4 if kind == "output" else 1))
        )
    await worker.succeed(claimed)
    late = await read_stream(client, claimed.id)
    for entries in await asyncio.gather(*live):
        assert entries == late
    assert late[-1]["type"] == "end"


async def test_head_of_a_stream_has_no_body(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    claimed = await start_job(client, worker)
    answer = await client.head(f"/v1/jobs/{claimed.id}/stream")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")


async def channels(redis: Redis) -> int:
    """The number of jobs that have subscribers."""
    return sum(b"}:news:" in name for name in await redis.pubsub_channels())


async def test_a_reader_that_leaves_is_noticed(
    client: httpx2.AsyncClient, worker: FakeWorker, redis: Redis
) -> None:
    claimed = await start_job(client, worker)

    async def watched() -> bool:
        return await channels(redis) == 1

    async def unwatched() -> bool:
        return await channels(redis) == 0

    async with client.stream("GET", f"/v1/jobs/{claimed.id}/stream") as answer:
        assert answer.status_code == 200
        await eventually(watched)
    await eventually(unwatched)


async def test_a_stalled_reader_delays_nobody_else(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    claimed = await start_job(client, worker)
    async with client.stream("GET", f"/v1/jobs/{claimed.id}/stream") as idle:
        assert idle.status_code == 200
        text = "x" * 60_000
        for _ in range(200):  # 12 MB, more than the socket buffers hold
            await worker.report(claimed, "output", text)
        await worker.succeed(claimed)
        entries = await read_stream(client, claimed.id)
        assert (len(entries), entries[-1]["type"]) == (204, "end")
        # Nothing is missing once the reader resumes.
        assert (await idle.aread()).count(b"event: output\n") == 200


@asynccontextmanager
async def draining(
    redis_url: str, root: Path
) -> AsyncIterator[tuple[httpx2.AsyncClient, Any, asyncio.Task[None]]]:
    settings = load_settings(redis_url=redis_url, store_url=f"file://{root}", keys=(), linger=0)
    server, sockets = make_server(create_app(settings), settings), listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    running = asyncio.create_task(server.serve(sockets))
    await eventually(lambda: server.started)
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
        yield client, server, running
    server.should_exit = True
    await running


async def test_the_end_of_the_service_ends_streams_and_waits(
    redis_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    async with draining(redis_url, tmp_path) as (client, server, running):
        claimed = await start_job(client, worker)
        stream = asyncio.create_task(read_stream(client, claimed.id))
        table = asyncio.create_task(
            client.get(f"/v1/jobs/{claimed.id}/stream?types=output", headers=CSV)
        )
        poll = asyncio.create_task(client.get(f"/v1/jobs/{claimed.id}?wait=30"))
        wait = asyncio.create_task(
            client.post("/v1/jobs", json={"task": "t.any"}, headers={"Prefer": "wait=30"})
        )
        await eventually(lambda: len(server.server_state.tasks) == 4)
        await worker.report(claimed, "output", {"a": 1})
        server.should_exit = True
        async with asyncio.timeout(20):
            assert [entry["type"] for entry in await stream][-1] != "end", (
                "a reader may resume the stream on another replica"
            )
            assert (await poll).json()["state"] == "running"
            assert (await wait).status_code == 202
            with pytest.raises(httpx2.RemoteProtocolError):
                await table
            await running


async def test_readiness_ends_before_the_service(
    redis_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    settings = load_settings(redis_url=redis_url, store_url=f"file://{tmp_path}", keys=(), linger=0)
    edge = create_app(settings)
    server, sockets = make_server(edge, settings), listen("127.0.0.1", 0)
    running = asyncio.create_task(server.serve(sockets))
    await eventually(lambda: server.started)
    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{sockets[0].getsockname()[1]}", trust_env=False
    ) as client:
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["redis"]["ok"]) == (200, True)
        assert ready.headers["cache-control"] == "no-store"
        edge.drain.begin()
        answer = await client.get("/readyz")
        assert problem(answer) == (503, "the process is shutting down")
        assert answer.json()["checks"]["serving"] == {"ok": False}
        assert (await client.get("/livez")).status_code == 200
    server.should_exit = True
    await running


async def test_two_replicas_serve_the_same_stream(
    redis_url: str, worker: FakeWorker, client: httpx2.AsyncClient, tmp_path: Path
) -> None:
    id = await run_job(client, worker)
    entries = await read_stream(client, id)
    async with serving(redis_url, tmp_path / "other") as other:
        assert await read_stream(other, id) == entries
        assert await read_stream(other, id, after=entries[4]["id"]) == entries[5:]
