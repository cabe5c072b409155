"""What a seed decides: the faults, the work; and that no transition is missed in Redis' files."""

import random
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tandem_shared.dev.servers import redis_server
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Submission
from tandem_shared.queue.queue import Queue
from tests.chaos.check.evidence import Event
from tests.chaos.journal import events, journaled
from tests.chaos.schedule import WEIGHTS, schedule
from tests.chaos.submissions import WEIGHTS as KINDS
from tests.chaos.submissions import work
from tests.conftest import eventually, started


def test_a_seed_repeats_its_schedule() -> None:
    faults = schedule(7, 600, 1.5, WEIGHTS, lease=2.0)
    assert faults == schedule(7, 600, 1.5, WEIGHTS, lease=2.0)
    assert faults != schedule(8, 600, 1.5, WEIGHTS, lease=2.0)
    assert {fault.kind for fault in faults} == set(WEIGHTS)
    assert 300 < len(faults) < 500
    assert any(fault.seconds > 2 for fault in faults if fault.kind == "stop worker"), (
        "zombies outlive their lease"
    )


def test_a_seed_repeats_its_work() -> None:
    for kind in KINDS:
        if kind not in ("bulk", "lines"):
            assert work(kind, "k", random.Random(3)) == work(kind, "k", random.Random(3))


async def test_the_journal_has_what_the_stream_has_lost(tmp_path: Path) -> None:
    server = journaled(redis_server(tmp_path))
    with started(server):
        await eventually(server.ready)
        redis = Redis.from_url(server.url, socket_timeout=5)
        queue = Queue(redis)
        jobs = [
            Submission(id=new_id(), task="a.b", payload=b"1", options=JobOptions(timeout=30))
            for _ in range(3)
        ]
        await queue.submit(jobs[0])
        await queue.events.join(1000)
        await queue.submit_many(jobs[1:])
        await queue.cancel(jobs[0].id)
        stamps = [(await queue.get(job.id)).stamp for job in jobs]  # type: ignore[union-attr] # they are there
        await redis.delete("tandem:{a}:events")
        await queue.close()
        await redis.aclose()
        found = list(events(tmp_path))
    assert [(event.id, event.stamp) for event in found[1:3]] == [
        (job.id, stamp) for job, stamp in zip(jobs[1:], stamps[1:], strict=True)
    ]
    assert [event.state for event in found[:3]] == ["queued"] * 3
    assert found[3:] == [Event(jobs[0].id, "cancelled", stamps[0], 0)]


async def test_the_journal_goes_on_after_a_rewrite(tmp_path: Path) -> None:
    server = journaled(redis_server(tmp_path))
    jobs = [
        Submission(id=new_id(), task="a.b", payload=b"1", options=JobOptions(timeout=30))
        for _ in range(2)
    ]
    with started(server):
        await eventually(server.ready)
        redis = Redis.from_url(server.url, socket_timeout=5)
        queue = Queue(redis)
        await queue.submit(jobs[0])
        await rewrite(redis)
        await queue.submit(jobs[1])
        await queue.close()
        await redis.aclose()
        assert [event.id for event in events(tmp_path)] == [job.id for job in jobs]


async def test_a_journal_that_is_compressed_is_refused(tmp_path: Path) -> None:
    server = redis_server(tmp_path)
    with started(server):
        await eventually(server.ready)
        async with Redis.from_url(server.url, socket_timeout=5) as redis:
            await redis.set("key", "value")
            await rewrite(redis)
        with pytest.raises(ValueError, match="an RDB file"):
            list(events(tmp_path))


async def rewrite(redis: Redis) -> None:
    """Returns when Redis has written its append-only file anew."""

    async def rewritten() -> bool:
        return int((await redis.info("persistence"))["aof_base_size"]) > 0

    assert not await rewritten()
    await redis.bgrewriteaof()  # type: ignore[no-untyped-call]  # redis-py gives it no types
    await eventually(rewritten)
