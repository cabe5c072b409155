"""Output beyond the tail in Redis: bounded there, whole in the file store, whoever dies and whatever is away."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tandem_shared.files.store import FileStore
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Finish
from tandem_shared.queue.queue import MAX_TAIL_BYTES
from tandem_shared.streams.reader import StreamReader, StreamSource
from tandem_shared.streams.segments import write_segment
from tandem_worker import task
from tandem_worker.errors import TaskError
from tandem_worker.jobs.job import Job
from tandem_worker.runtime import output
from tandem_worker.runtime.outbox import SEGMENT_BYTES
from tandem_worker.runtime.output import KEEP_BYTES
from tests.conftest import eventually
from tests.worker.recorded import Said, claimed
from tests.worker.workers import Client, outcomes, working

ITEM = b'"%06d' + b"x" * 50_000 + b'"'
MIB = 1 << 20


@contextmanager
def away(directory: Path) -> Iterator[None]:
    """The store fails within the block: a file stands where its directory was."""
    store = directory / "store"
    store.rename(directory / "hidden")
    store.write_bytes(b"")
    yield
    store.unlink()
    (directory / "hidden").rename(store)


async def say(said: Said, first: int, last: int) -> None:
    for number in range(first, last):
        await said.output.output(ITEM % number)


async def told(client: Client, store: FileStore, id: str) -> list[int]:
    """The numbers of all items, as readers get them."""
    reader = StreamReader(StreamSource(client.queue, store), id, types=frozenset({"output"}))
    record = await client.record(id)
    return [
        int(entry.data[1:7]) async for entry in reader.entries(record) if entry.type == "output"
    ]


async def held(client: Client, redis: Redis, id: str) -> int:
    """Bytes of the job's stream in Redis."""
    return int(await redis.memory_usage(f"{client.queue.prefix}out:{id}", samples=0) or 0)


async def test_redis_holds_a_bounded_part_and_readers_get_all(redis: Redis, said: Said) -> None:
    most = 0
    saying = asyncio.create_task(say(said, 0, 800))  # 40 MB

    async def over() -> bool:
        nonlocal most
        most = max(most, await held(said.client, redis, said.job.id))
        return saying.done()

    await eventually(over, 30)
    await said.output.drain()
    assert 0 < most < MAX_TAIL_BYTES + 2 * MIB
    assert await held(said.client, redis, said.job.id) < 2 * KEEP_BYTES
    segments = await said.client.queue.segments(said.job.id)
    assert all(size < SEGMENT_BYTES + MIB for _, _, size in segments)
    assert sum(size for _, _, size in segments) > 39 * 10**6
    assert await told(said.client, said.store, said.job.id) == list(range(800))


async def test_small_output_stays_in_redis(said: Said) -> None:
    await say(said, 0, 5)
    await said.output.drain()
    assert await said.client.queue.segments(said.job.id) == []
    assert await told(said.client, said.store, said.job.id) == list(range(5))


async def test_a_segment_whose_writer_died_before_redis_knew_is_written_again(
    said: Said, client: Client
) -> None:
    said.output._outbox._moves = asyncio.Semaphore(0)  # it moves no segment before this test does
    await say(said, 0, 60)
    await eventually(lambda: client.queue.output(said.job.id, 0, 100))
    chunks = await client.queue.output(said.job.id, 0, 1000)
    left = await write_segment(said.store, said.job.id, chunks)  # and here it dies
    said.output.abandon()
    assert await client.queue.finish(
        [Finish(said.job.id, said.job.token, State.QUEUED, "released")]
    ) == ["ok"]
    before = await told(client, said.store, said.job.id)
    assert before == list(range(len(before)))
    again = Said(client, await claimed(client, submit=False), said.store)
    assert again.job.id == said.job.id
    await say(again, 0, 200)
    await again.output.drain()
    segments = await client.queue.segments(said.job.id)
    assert segments[0].first == left.first
    assert await told(client, said.store, said.job.id) == [*before, *range(200)]


async def test_a_zombie_moves_nothing(said: Said, client: Client) -> None:
    await say(said, 0, 30)
    await eventually(lambda: client.queue.output(said.job.id, 0, 100))
    # The job is taken from it without its knowledge.
    assert await client.queue.finish(
        [Finish(said.job.id, said.job.token, State.QUEUED, "released")]
    ) == ["ok"]
    before = await client.queue.output(said.job.id, 0, 1000)
    assert await said.output._outbox.move(said.job.id, said.job.token) is None
    assert await client.queue.output(said.job.id, 0, 1000) == before
    assert await client.queue.segments(said.job.id) == []
    await say(said, 30, 31)
    await said.output.drain()
    assert said.lost == 1


async def test_writers_wait_for_the_store_and_go_on(
    said: Said, tmp_path: Path, redis: Redis
) -> None:
    with away(tmp_path):
        saying = asyncio.create_task(say(said, 0, 400))
        await eventually(lambda: said.output.stuck)

        async def full() -> bool:
            return (
                MAX_TAIL_BYTES - MIB
                < await held(said.client, redis, said.job.id)
                < MAX_TAIL_BYTES + 2 * MIB
            )

        await eventually(full)
        assert not saying.done()
    await saying
    await said.output.drain()
    assert not said.output.stuck
    assert await told(said.client, said.store, said.job.id) == list(range(400))


async def test_output_that_the_store_never_takes_fails_the_attempt(
    client: Client, store: FileStore, tmp_path: Path
) -> None:
    said = Said(client, await claimed(client), store, seconds=0.5)
    with away(tmp_path):
        with pytest.raises(TaskError) as caught:
            await say(said, 0, 400)
        assert (caught.value.type, caught.value.retryable) == ("store_unavailable", True)
        with pytest.raises(TaskError):
            await said.output.drain()
    before = await told(client, store, said.job.id)
    assert before == list(range(len(before)))
    assert len(before) * 50_000 > MAX_TAIL_BYTES - MIB


async def test_the_end_of_the_output_may_stay_in_redis(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "TIDY_SECONDS", 0.2)
    with away(tmp_path):
        await say(said, 0, 40)
        await said.output.drain()
        assert await said.client.queue.segments(said.job.id) == []
    assert await told(said.client, said.store, said.job.id) == list(range(40))


@task("floods", timeout="3s")
async def floods(job: Job, payload: int) -> None:
    for number in range(payload):
        await job.emit(f"{number:06d}" + "x" * 50_000)


async def test_a_job_waits_for_the_store_until_its_timeout_and_says_so(
    redis_url: str, client: Client, tmp_path: Path, store: FileStore
) -> None:
    async with working(redis_url, tmp_path, floods):
        with away(tmp_path):
            id = await client.submit(
                floods, 400, retry={"max_attempts": 20, "base": 0.01, "cap": 0.1}
            )

            async def once() -> bool:
                return "timeout" in outcomes(await client.record(id))

            await eventually(once, 20)
            error: Any = (await client.record(id)).error
            assert b"its output was waiting for the file store" in error
        assert await client.result(id) is None
    record = await client.record(id)
    *before, last = outcomes(record)
    assert (set(before), last) == ({"timeout"}, "succeeded")
    reader = StreamReader(StreamSource(client.queue, store), id, types=frozenset({"output"}))
    entries = [entry async for entry in reader.entries(record) if entry.type == "output"]
    for attempt in range(1, record.attempt + 1):
        numbers = [int(entry.data[1:7]) for entry in entries if entry.attempt == attempt]
        assert numbers == list(range(400 if attempt == record.attempt else len(numbers)))
    assert [entry.attempt for entry in entries] == sorted(entry.attempt for entry in entries)
