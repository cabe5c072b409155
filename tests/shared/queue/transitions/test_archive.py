"""Archiving output to the file store: in order, fenced, once, and readable as long as the job."""

from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Claimed, Report, Segment
from tandem_shared.queue.scripts import ENTRY_BYTES
from tests.shared.queue.model.shard import Shard


async def write(
    shard: Shard, claimed: Claimed, count: int, first: int = 1, **bounds: int
) -> list[str]:
    reports = [
        Report(claimed.id, claimed.token, first + n, "output", b"x" * 36) for n in range(count)
    ]
    return await shard.report(*reports, limit=1 << 20, **bounds)


async def test_entries_name_their_predecessor_across_attempts(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    for _ in range(2):
        claimed = await worker.take()
        await write(shard, claimed, 2)
        await worker.end(claimed, State.QUEUED)
    chunks = await shard.queue.output(id)
    assert [chunk.before for chunk in chunks] == [0, *(chunk.stamp for chunk in chunks[:-1])]


async def test_a_long_stream_asks_to_be_archived_and_a_full_one_waits(shard: Shard) -> None:
    await shard.add()
    claimed = await (await shard.worker()).take()
    bounds = {"archive_from": 3 * (36 + ENTRY_BYTES), "max_tail": 4 * (36 + ENTRY_BYTES)}
    assert await write(shard, claimed, 6, **bounds) == ["ok", "ok", "long", "long", "wait", "wait"]
    first, second, *_ = await shard.queue.output(claimed.id)
    left = await shard.queue.archive(
        claimed.id, claimed.token, Segment(first.stamp, second.stamp, 99), 2 * first.weight
    )
    assert left == 2 * (36 + ENTRY_BYTES)
    # Nothing was written out of order, and the next reports are accepted.
    assert await write(shard, claimed, 2, first=5, **bounds) == ["long", "long"]
    assert await write(shard, claimed, 1, first=7, **bounds) == ["wait"]
    assert len(await shard.queue.output(claimed.id)) == 4


async def test_a_single_entry_may_exceed_the_limit(shard: Shard) -> None:
    await shard.add()
    claimed = await (await shard.worker()).take()
    assert await write(shard, claimed, 2, archive_from=1, max_tail=10) == ["long", "wait"]


async def test_archiving_removes_the_oldest_entries_once(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    claimed = await worker.take()
    await write(shard, claimed, 4)
    chunks = await shard.queue.output(id)
    one, two = (
        Segment(chunks[0].stamp, chunks[1].stamp, 7),
        Segment(chunks[2].stamp, chunks[2].stamp, 8),
    )
    weight = chunks[0].weight
    for _ in range(2):
        assert await shard.queue.archive(id, claimed.token, one, 2 * weight) == 2 * weight
        assert await shard.queue.output(id) == chunks[2:]
        assert await shard.queue.segments(id) == [one]
    assert await shard.queue.archive(id, claimed.token, two, weight) == weight
    assert await shard.queue.archive(id, claimed.token, one, 2 * weight) == weight  # late
    assert await shard.queue.segments(id) == [one, two]
    assert await shard.queue.segments(id, one.last - 1) == [one, two]
    assert await shard.queue.segments(id, one.last) == [two]
    assert await shard.queue.segments(id, 0, limit=1) == [one]
    await worker.end(claimed)


async def test_only_the_oldest_part_can_be_archived(shard: Shard) -> None:
    await shard.add()
    claimed = await (await shard.worker()).take()
    await write(shard, claimed, 3)
    chunks = await shard.queue.output(claimed.id)
    weight = chunks[0].weight
    assert (
        await shard.queue.archive(
            claimed.id, claimed.token, Segment(chunks[1].stamp, chunks[2].stamp, 7), 1
        )
        == 3 * weight
    )
    assert await shard.queue.output(claimed.id) == chunks
    assert await shard.queue.segments(claimed.id) == []


async def test_only_the_current_attempt_can_archive(shard: Shard) -> None:
    id = await shard.add(max_attempts=9)
    worker = await shard.worker()
    old = await worker.take()
    await write(shard, old, 2)
    first, second = await shard.queue.output(id)
    segment = Segment(first.stamp, second.stamp, 7)
    await worker.end(old, State.QUEUED)
    assert await shard.queue.archive(id, old.token, segment, 1) is None
    new = await worker.take()
    assert await shard.queue.archive(id, old.token, segment, 1) is None
    assert len(await shard.queue.output(id)) == 2
    # The next attempt may archive what the previous one left.
    assert await shard.queue.archive(id, new.token, segment, 2 * first.weight) == 0
    await worker.end(new)
    assert await shard.queue.archive(id, new.token, segment, 1) is None
    assert await shard.queue.archive("nobody", new.token, segment, 1) is None


async def test_the_segment_index_lives_as_long_as_the_record(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    claimed = await worker.take()
    await write(shard, claimed, 1)
    (chunk,) = await shard.queue.output(id)
    await shard.queue.archive(id, claimed.token, Segment(chunk.stamp, chunk.stamp, 7), chunk.weight)
    assert (await shard.snapshot()).ttl[f"cold:{id}"] == -1
    await worker.end(claimed)
    ttl = (await shard.snapshot()).ttl
    assert abs(ttl[f"cold:{id}"] - ttl[f"job:{id}"]) < 1000
