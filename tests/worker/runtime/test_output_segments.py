"""Output beyond the tail in Redis: bounded there, complete in the file store, despite outages."""

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
from tests.worker.recorded import OutputProbe, claimed
from tests.worker.workers import Client, outcomes, working

ITEM = b'"%06d' + b"x" * 50_000 + b'"'
MIB = 1 << 20


@contextmanager
def store_down(directory: Path) -> Iterator[None]:
    """Within the block the store fails: a file is in the place of its directory."""
    store = directory / "store"
    store.rename(directory / "hidden")
    store.write_bytes(b"")
    yield
    store.unlink()
    (directory / "hidden").rename(store)


async def write(probe: OutputProbe, first: int, last: int) -> None:
    for number in range(first, last):
        await probe.output.output(ITEM % number)


async def read_numbers(client: Client, store: FileStore, id: str) -> list[int]:
    """The numbers of all items, as a reader gets them."""
    reader = StreamReader(StreamSource(client.queue, store), id, types=frozenset({"output"}))
    record = await client.record(id)
    return [
        int(entry.data[1:7]) async for entry in reader.entries(record) if entry.type == "output"
    ]


async def redis_bytes(client: Client, redis: Redis, id: str) -> int:
    """Bytes of the job's stream in Redis."""
    return int(await redis.memory_usage(f"{client.queue.prefix}out:{id}", samples=0) or 0)


async def test_redis_holds_a_bounded_part_and_readers_get_everything(
    redis: Redis, probe: OutputProbe
) -> None:
    most = 0
    writing = asyncio.create_task(write(probe, 0, 800))  # 40 MB

    async def over() -> bool:
        nonlocal most
        most = max(most, await redis_bytes(probe.client, redis, probe.job.id))
        return writing.done()

    await eventually(over, 30)
    await probe.output.drain()
    assert 0 < most < MAX_TAIL_BYTES + 2 * MIB
    assert await redis_bytes(probe.client, redis, probe.job.id) < 2 * KEEP_BYTES
    segments = await probe.client.queue.segments(probe.job.id)
    assert all(size < SEGMENT_BYTES + MIB for _, _, size in segments)
    assert sum(size for _, _, size in segments) > 39 * 10**6
    assert await read_numbers(probe.client, probe.store, probe.job.id) == list(range(800))


async def test_small_output_stays_in_redis(probe: OutputProbe) -> None:
    await write(probe, 0, 5)
    await probe.output.drain()
    assert await probe.client.queue.segments(probe.job.id) == []
    assert await read_numbers(probe.client, probe.store, probe.job.id) == list(range(5))


async def test_a_segment_whose_writer_died_before_redis_knew_is_written_again(
    probe: OutputProbe, client: Client
) -> None:
    probe.output._outbox._moves = asyncio.Semaphore(0)  # it moves no segment before this test does
    await write(probe, 0, 60)
    await eventually(lambda: client.queue.output(probe.job.id, 0, 100))
    chunks = await client.queue.output(probe.job.id, 0, 1000)
    left = await write_segment(probe.store, probe.job.id, chunks)  # the writer dies here
    probe.output.abandon()
    assert await client.queue.finish(
        [Finish(probe.job.id, probe.job.token, State.QUEUED, "released")]
    ) == ["ok"]
    before = await read_numbers(client, probe.store, probe.job.id)
    assert before == list(range(len(before)))
    again = OutputProbe(client, await claimed(client, submit=False), probe.store)
    assert again.job.id == probe.job.id
    await write(again, 0, 200)
    await again.output.drain()
    segments = await client.queue.segments(probe.job.id)
    assert segments[0].first == left.first
    assert await read_numbers(client, probe.store, probe.job.id) == [*before, *range(200)]


async def test_a_worker_that_lost_its_job_moves_nothing(probe: OutputProbe, client: Client) -> None:
    await write(probe, 0, 30)
    await eventually(lambda: client.queue.output(probe.job.id, 0, 100))
    # The job is released without the knowledge of its worker.
    assert await client.queue.finish(
        [Finish(probe.job.id, probe.job.token, State.QUEUED, "released")]
    ) == ["ok"]
    before = await client.queue.output(probe.job.id, 0, 1000)
    assert await probe.output._outbox.move(probe.job.id, probe.job.token) is None
    assert await client.queue.output(probe.job.id, 0, 1000) == before
    assert await client.queue.segments(probe.job.id) == []
    await write(probe, 30, 31)
    await probe.output.drain()
    assert probe.lost == ["lost"]


async def test_writers_wait_for_the_store_and_continue(
    probe: OutputProbe, tmp_path: Path, redis: Redis
) -> None:
    with store_down(tmp_path):
        writing = asyncio.create_task(write(probe, 0, 400))
        await eventually(lambda: probe.output.stuck)

        async def full() -> bool:
            return (
                MAX_TAIL_BYTES - MIB
                < await redis_bytes(probe.client, redis, probe.job.id)
                < MAX_TAIL_BYTES + 2 * MIB
            )

        await eventually(full)
        assert not writing.done()
    await writing
    await probe.output.drain()
    assert not probe.output.stuck
    assert await read_numbers(probe.client, probe.store, probe.job.id) == list(range(400))


async def test_the_attempt_fails_if_the_store_never_takes_its_output(
    client: Client, store: FileStore, tmp_path: Path
) -> None:
    probe = OutputProbe(client, await claimed(client), store, seconds=0.5)
    with store_down(tmp_path):
        with pytest.raises(TaskError) as caught:
            await write(probe, 0, 400)
        assert (caught.value.type, caught.value.retryable) == ("store_unavailable", True)
        with pytest.raises(TaskError):
            await probe.output.drain()
    before = await read_numbers(client, store, probe.job.id)
    assert before == list(range(len(before)))
    assert len(before) * 50_000 > MAX_TAIL_BYTES - MIB


async def test_the_end_of_the_output_stays_in_redis_if_it_cannot_be_moved(
    probe: OutputProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "TIDY_SECONDS", 0.2)
    with store_down(tmp_path):
        await write(probe, 0, 40)
        await probe.output.drain()
        assert await probe.client.queue.segments(probe.job.id) == []
    assert await read_numbers(probe.client, probe.store, probe.job.id) == list(range(40))


@task("floods", timeout="3s")
async def floods(job: Job, payload: int) -> None:
    for number in range(payload):
        await job.emit(f"{number:06d}" + "x" * 50_000)


async def test_a_job_waits_for_the_store_until_its_timeout_and_its_error_says_why(
    redis_url: str, client: Client, tmp_path: Path, store: FileStore
) -> None:
    async with working(redis_url, tmp_path, floods):
        with store_down(tmp_path):
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
