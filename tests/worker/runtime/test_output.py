"""A job's reports on their way to Redis: in order, in chunks, bounded, written exactly once."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from redis.asyncio import Redis

from tandem_shared.dev.servers import redis_server
from tandem_shared.files.store import FileStore
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Finish, Report, Reported
from tandem_worker.errors import TaskError
from tandem_worker.runtime import output
from tandem_worker.runtime.output import BUFFER_BYTES, CHUNK_BYTES
from tests.conftest import eventually, started
from tests.shared.queue.model.rollback import copy_keys, roll_back
from tests.worker.recorded import OutputProbe, claimed
from tests.worker.workers import Client, open_client


async def test_items_arrive_in_order_and_a_flood_in_chunks(probe: OutputProbe) -> None:
    for n in range(5000):
        await probe.output.output(b"[%d]" % n)
    await probe.output.drain()
    assert await probe.items() == [[n] for n in range(5000)]
    chunks = await probe.chunks()
    assert len(chunks) < 100
    assert [chunk.stamp for chunk in chunks] == sorted({chunk.stamp for chunk in chunks})


async def test_the_first_item_leaves_at_once(probe: OutputProbe) -> None:
    await probe.output.output(b"1")
    await eventually(probe.items)  # before anything drains it
    await probe.output.drain()


async def test_chunks_are_bounded_except_for_a_single_large_item(probe: OutputProbe) -> None:
    sizes = [10, CHUNK_BYTES - 5, 10, CHUNK_BYTES // 2, CHUNK_BYTES // 2, CHUNK_BYTES * 3, 10, 10]
    for size in sizes:
        await probe.output.output(b'"' + b"x" * (size - 2) + b'"')
    await probe.output.drain()
    chunks = await probe.chunks()
    assert [len(item) for chunk in chunks for item in chunk.items] == sizes
    assert all(
        sum(map(len, chunk.items)) <= CHUNK_BYTES or len(chunk.items) == 1 for chunk in chunks
    )


async def test_reports_of_different_kinds_keep_their_order(probe: OutputProbe) -> None:
    for n in range(20):
        await probe.output.output(b"%d" % n)
        probe.output.log(b'{"n":%d}' % n)
    await probe.output.drain()
    chunks = await probe.chunks()
    flat = [(chunk.type, item) for chunk in chunks for item in chunk.items]
    assert flat == [
        pair for n in range(20) for pair in (("output", b"%d" % n), ("log", b'{"n":%d}' % n))
    ]


async def test_an_item_with_line_ends_stays_one_item(probe: OutputProbe) -> None:
    await probe.output.output(b'{\n  "a": [1,\n 2]}')
    await probe.output.output(b'"second"')
    await probe.output.drain()
    assert await probe.items() == [{"a": [1, 2]}, "second"]
    assert probe.output._buffered == 0


async def test_only_the_newest_progress_is_written_and_the_last_always_is(
    probe: OutputProbe,
) -> None:
    for n in range(1000):
        await probe.output.progress(b"%d" % n)
        await asyncio.sleep(0)
    await probe.output.drain()
    reported = await probe.items("progress")
    assert reported[-1] == 999
    assert len(reported) < 100
    assert (await probe.client.record(probe.job.id)).progress == b"999"


async def test_progress_that_waits_delays_nothing_else(
    probe: OutputProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "PROGRESS_SECONDS", 3600.0)
    await probe.output.progress(b"1")
    await eventually(lambda: probe.items("progress"))
    await probe.output.progress(b"2")
    await asyncio.sleep(0)
    await probe.output.output(b"3")
    await eventually(probe.items)
    assert await probe.items("progress") == [1]
    await probe.output.drain()  # nor does it delay the end
    assert await probe.items("progress") == [1, 2]


@asynccontextmanager
async def blocked(probe: OutputProbe) -> AsyncIterator[None]:
    """Reports leave only when the block ends."""
    gate = asyncio.Event()
    outbox = probe.output._outbox
    send = outbox.send

    async def later(reports: list[Report]) -> list[Reported]:
        await gate.wait()
        return await send(reports)

    outbox.send = later  # type: ignore[method-assign] # Redis is slow for as long as the test wants
    yield
    gate.set()


async def test_what_redis_lost_is_written_again_under_its_stamps(probe: OutputProbe) -> None:
    redis, prefix = probe.client.redis, probe.client.queue.prefix
    for n in range(3):
        await probe.output.output(b"%d" % n)
        await probe.output.drain()
    copy = await copy_keys(redis, prefix)
    for n in range(3, 6):
        await probe.output.output(b"%d" % n)
        await probe.output.drain()
    before = await probe.chunks()
    await roll_back(redis, prefix, copy)
    assert len(await probe.items()) == 3
    await probe.output.output(b"6")
    await probe.output.drain()
    assert await probe.items() == list(range(7))
    assert (await probe.chunks())[:6] == before
    assert not probe.lost


async def test_an_attempt_with_a_hole_in_its_output_is_given_up(
    probe: OutputProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe.output._outbox._recent, "_max_bytes", 0)  # nothing is kept
    redis, prefix = probe.client.redis, probe.client.queue.prefix
    copy = await copy_keys(redis, prefix)
    await probe.output.output(b"1")
    await probe.output.drain()
    await roll_back(redis, prefix, copy)
    await probe.output.output(b"2")
    await probe.output.drain()
    assert await probe.items() == []
    assert probe.lost == ["torn"]


async def test_a_writer_waits_while_the_buffer_is_full(probe: OutputProbe) -> None:
    item = b'"' + b"x" * 998 + b'"'
    async with blocked(probe):

        async def write() -> None:
            for _ in range(2000):
                await probe.output.output(item)

        writing = asyncio.create_task(write())
        await eventually(lambda: probe.output._buffered > BUFFER_BYTES)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not writing.done()
        assert probe.output._buffered <= BUFFER_BYTES + len(item)
    await writing
    await probe.output.drain()
    assert len(await probe.items()) == 2000


async def test_logs_without_room_are_counted_and_reported(probe: OutputProbe) -> None:
    body = b'"' + b"x" * 998 + b'"'
    async with blocked(probe):
        for _ in range(1000):
            probe.output.log(body)
    await probe.output.drain()
    await probe.output.drain()  # reported once
    lines = await probe.items("log")
    assert 0 < probe.output.dropped < 1000
    expected = {"level": "warning", "message": f"{probe.output.dropped} log entries were dropped"}
    assert lines[-1] == expected
    assert len(lines) == 1000 - probe.output.dropped + 1


async def test_output_beyond_the_limit_fails_the_attempt(client: Client, store: FileStore) -> None:
    probe = OutputProbe(client, await claimed(client), store, limit=1 << 20)
    item = b'"' + b"x" * 9998 + b'"'

    async def write() -> None:
        for _ in range(1000):
            await probe.output.output(item)
        await probe.output.drain()

    with pytest.raises(TaskError) as caught:
        await write()
    assert (caught.value.type, caught.value.retryable) == ("too_large", False)
    with pytest.raises(TaskError):
        await probe.output.drain()
    assert 0 < len(await probe.items()) <= 104
    assert not probe.lost


async def test_logs_beyond_the_limit_fail_nothing(client: Client, store: FileStore) -> None:
    probe = OutputProbe(client, await claimed(client), store, limit=100)
    probe.output.log(b'"' + b"x" * 200 + b'"')
    await probe.output.drain()
    assert await probe.items("log") == []


async def test_a_lost_job_is_noticed_once_and_takes_no_more_reports(probe: OutputProbe) -> None:
    finish = Finish(probe.job.id, probe.job.token, State.SUCCEEDED, "succeeded")
    assert await probe.client.queue.finish([finish]) == ["ok"]
    await probe.output.output(b"1")
    await probe.output.drain()
    assert probe.lost == ["lost"]
    with pytest.raises(TaskError):
        await probe.output.output(b"2")
    probe.output.log(b"{}")
    await probe.output.progress(b"{}")
    await probe.output.drain()
    assert probe.lost == ["lost"]
    assert await probe.items() == []


async def test_abandoned_reports_are_not_written(probe: OutputProbe) -> None:
    async with blocked(probe):
        await probe.output.output(b"1")
        await asyncio.sleep(0)
        probe.output.abandon()
    await probe.output.drain()
    assert await probe.items() == []
    assert not probe.lost


async def test_an_unexpected_error_of_redis_reaches_the_attempt(
    redis: Redis, probe: OutputProbe
) -> None:
    await redis.set(f"{probe.client.queue.prefix}out:{probe.job.id}", "no stream")
    await probe.output.output(b"1")
    with pytest.raises(Exception, match="WRONGTYPE"):
        await probe.output.drain()
    with pytest.raises(Exception, match="WRONGTYPE"):
        await probe.output.output(b"2")


async def test_nothing_is_lost_or_doubled_while_redis_is_down(store: FileStore) -> None:
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        server = redis_server(Path(directory))
        with started(server) as first:
            await eventually(server.ready)
            async with open_client(server.url, lease=600) as client:
                # An answer means that the write is on disk, so that it survives a kill.
                await client.redis.config_set("appendfsync", "always")
                probe = OutputProbe(client, await claimed(client), store)
                counted = asyncio.create_task(count(probe, 20_000))
                await eventually(lambda: client.queue.output(probe.job.id, 0, 1))
                first.kill()
                await asyncio.to_thread(first.wait, 10)
                assert not counted.done()
                with started(server):
                    await eventually(server.ready)
                    await counted
                    await probe.output.drain()
                    assert await probe.items() == list(range(20_000))
                    assert not probe.lost
                    finish = Finish(probe.job.id, probe.job.token, State.SUCCEEDED, "succeeded")
                    assert await client.queue.finish([finish]) == ["ok"]


async def count(probe: OutputProbe, to: int) -> None:
    for n in range(to):
        await probe.output.output(msgspec.json.encode(n))
        if n % 100 == 0:
            await asyncio.sleep(0.001)
