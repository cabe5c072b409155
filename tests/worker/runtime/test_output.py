"""What a job says on its way to Redis: in order, in chunks, within bounds, once, whatever happens to Redis."""

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
from tandem_shared.queue.messages import Finish, Report
from tandem_worker.errors import TaskError
from tandem_worker.runtime import output
from tandem_worker.runtime.output import BUFFER_BYTES, CHUNK_BYTES
from tests.conftest import eventually, started
from tests.worker.recorded import Said, claimed
from tests.worker.workers import Client, open_client


async def test_items_arrive_in_order_and_a_flood_in_chunks(said: Said) -> None:
    for n in range(5000):
        await said.output.output(b"[%d]" % n)
    await said.output.drain()
    assert await said.items() == [[n] for n in range(5000)]
    chunks = await said.chunks()
    assert len(chunks) < 100
    assert [chunk.stamp for chunk in chunks] == sorted({chunk.stamp for chunk in chunks})


async def test_the_first_item_leaves_at_once(said: Said) -> None:
    await said.output.output(b"1")
    await eventually(said.items)  # nobody has drained it
    await said.output.drain()


async def test_no_chunk_is_larger_than_it_may_be_but_for_one_large_item(said: Said) -> None:
    sizes = [10, CHUNK_BYTES - 5, 10, CHUNK_BYTES // 2, CHUNK_BYTES // 2, CHUNK_BYTES * 3, 10, 10]
    for size in sizes:
        await said.output.output(b'"' + b"x" * (size - 2) + b'"')
    await said.output.drain()
    chunks = await said.chunks()
    assert [len(item) for chunk in chunks for item in chunk.items] == sizes
    assert all(
        sum(map(len, chunk.items)) <= CHUNK_BYTES or len(chunk.items) == 1 for chunk in chunks
    )


async def test_kinds_keep_their_order_among_each_other(said: Said) -> None:
    for n in range(20):
        await said.output.output(b"%d" % n)
        said.output.log(b'{"n":%d}' % n)
    await said.output.drain()
    chunks = await said.chunks()
    flat = [(chunk.type, item) for chunk in chunks for item in chunk.items]
    assert flat == [
        pair for n in range(20) for pair in (("output", b"%d" % n), ("log", b'{"n":%d}' % n))
    ]


async def test_an_item_of_several_lines_stays_one(said: Said) -> None:
    await said.output.output(b'{\n  "a": [1,\n 2]}')
    await said.output.output(b'"second"')
    await said.output.drain()
    assert await said.items() == [{"a": [1, 2]}, "second"]
    assert said.output._buffered == 0


async def test_the_newest_progress_is_what_counts_and_the_last_is_written(said: Said) -> None:
    for n in range(1000):
        await said.output.progress(b"%d" % n)
        await asyncio.sleep(0)
    await said.output.drain()
    reported = await said.items("progress")
    assert reported[-1] == 999
    assert len(reported) < 100
    assert (await said.client.record(said.job.id)).progress == b"999"


async def test_progress_that_waits_for_its_time_holds_nothing_up(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "PROGRESS_SECONDS", 3600.0)
    await said.output.progress(b"1")
    await eventually(lambda: said.items("progress"))
    await said.output.progress(b"2")
    await asyncio.sleep(0)
    await said.output.output(b"3")
    await eventually(said.items)
    assert await said.items("progress") == [1]
    await said.output.drain()  # nor is it held up at the end
    assert await said.items("progress") == [1, 2]


@asynccontextmanager
async def held_up(said: Said) -> AsyncIterator[None]:
    """What is said leaves only when the block ends."""
    gate = asyncio.Event()
    outbox = said.output._outbox
    send = outbox.send

    async def later(reports: list[Report]) -> list[str]:
        await gate.wait()
        return await send(reports)

    outbox.send = later  # type: ignore[method-assign] # a Redis that is slow for as long as the test wants
    yield
    gate.set()


async def test_a_writer_waits_while_the_buffer_is_full(said: Said) -> None:
    item = b'"' + b"x" * 998 + b'"'
    async with held_up(said):

        async def write() -> None:
            for _ in range(2000):
                await said.output.output(item)

        writing = asyncio.create_task(write())
        await eventually(lambda: said.output._buffered > BUFFER_BYTES)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not writing.done()
        assert said.output._buffered <= BUFFER_BYTES + len(item)
    await writing
    await said.output.drain()
    assert len(await said.items()) == 2000


async def test_logs_without_room_are_counted_and_told(said: Said) -> None:
    body = b'"' + b"x" * 998 + b'"'
    async with held_up(said):
        for _ in range(1000):
            said.output.log(body)
    await said.output.drain()
    await said.output.drain()  # told once
    lines = await said.items("log")
    assert 0 < said.output.dropped < 1000
    told = {"level": "warning", "message": f"{said.output.dropped} log entries were dropped"}
    assert lines[-1] == told
    assert len(lines) == 1000 - said.output.dropped + 1


async def test_output_beyond_the_limit_fails_the_attempt(client: Client, store: FileStore) -> None:
    said = Said(client, await claimed(client), store, limit=1 << 20)
    item = b'"' + b"x" * 9998 + b'"'

    async def write() -> None:
        for _ in range(1000):
            await said.output.output(item)
        await said.output.drain()

    with pytest.raises(TaskError) as caught:
        await write()
    assert (caught.value.type, caught.value.retryable) == ("too_large", False)
    with pytest.raises(TaskError):
        await said.output.drain()
    assert 0 < len(await said.items()) <= 104
    assert said.lost == 0


async def test_logs_beyond_the_limit_fail_nothing(client: Client, store: FileStore) -> None:
    said = Said(client, await claimed(client), store, limit=100)
    said.output.log(b'"' + b"x" * 200 + b'"')
    await said.output.drain()
    assert await said.items("log") == []


async def test_a_lost_job_is_told_once_and_nothing_more_is_taken(said: Said) -> None:
    finish = Finish(said.job.id, said.job.token, State.SUCCEEDED, "succeeded")
    assert await said.client.queue.finish([finish]) == ["ok"]
    await said.output.output(b"1")
    await said.output.drain()
    assert said.lost == 1
    with pytest.raises(TaskError):
        await said.output.output(b"2")
    said.output.log(b"{}")
    await said.output.progress(b"{}")
    await said.output.drain()
    assert said.lost == 1
    assert await said.items() == []


async def test_what_is_abandoned_is_not_written(said: Said) -> None:
    async with held_up(said):
        await said.output.output(b"1")
        await asyncio.sleep(0)
        said.output.abandon()
    await said.output.drain()
    assert await said.items() == []
    assert said.lost == 0


async def test_an_error_that_is_not_redis_being_away_reaches_the_attempt(
    redis: Redis, said: Said
) -> None:
    await redis.set(f"{said.client.queue.prefix}out:{said.job.id}", "no stream")
    await said.output.output(b"1")
    with pytest.raises(Exception, match="WRONGTYPE"):
        await said.output.drain()
    with pytest.raises(Exception, match="WRONGTYPE"):
        await said.output.output(b"2")


async def test_nothing_is_lost_or_doubled_while_redis_is_away(store: FileStore) -> None:
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        server = redis_server(Path(directory))
        with started(server) as first:
            await eventually(server.ready)
            async with open_client(server.url, lease=600) as client:
                # What is written must outlive a kill: an answer means that it is on the disk.
                await client.redis.config_set("appendfsync", "always")
                said = Said(client, await claimed(client), store)
                counted = asyncio.create_task(count(said, 20_000))
                await eventually(lambda: client.queue.output(said.job.id, 0, 1))
                first.kill()
                await asyncio.to_thread(first.wait, 10)
                assert not counted.done()
                with started(server):
                    await eventually(server.ready)
                    await counted
                    await said.output.drain()
                    assert await said.items() == list(range(20_000))
                    assert said.lost == 0
                    finish = Finish(said.job.id, said.job.token, State.SUCCEEDED, "succeeded")
                    assert await client.queue.finish([finish]) == ["ok"]


async def count(said: Said, to: int) -> None:
    for n in range(to):
        await said.output.output(msgspec.json.encode(n))
        if n % 100 == 0:
            await asyncio.sleep(0.001)
