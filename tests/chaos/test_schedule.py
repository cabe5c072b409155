"""What a seed decides, and that Redis' append-only files contain every transition."""

import random
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tandem_shared.dev.servers import redis_server
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Submission
from tandem_shared.queue.queue import Queue
from tests.chaos.check.evidence import Transition
from tests.chaos.journal import journaled, transitions
from tests.chaos.schedule import WEIGHTS, schedule
from tests.chaos.submissions import WEIGHTS as KINDS
from tests.chaos.submissions import job_request
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


def test_a_seed_repeats_its_jobs() -> None:
    for kind in KINDS:
        if kind not in ("bulk", "lines"):
            assert job_request(kind, "k", random.Random(3)) == job_request(
                kind, "k", random.Random(3)
            )


async def test_the_journal_keeps_what_was_trimmed_from_the_stream(tmp_path: Path) -> None:
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
        stamps = [(await queue.get(job.id)).stamp for job in jobs]  # type: ignore[union-attr] # they exist
        await redis.delete("tandem:{a}:events")
        await queue.close()
        await redis.aclose()
        found = list(transitions(tmp_path))
    assert [(event.id, event.stamp) for event in found[1:3]] == [
        (job.id, stamp) for job, stamp in zip(jobs[1:], stamps[1:], strict=True)
    ]
    assert [event.state for event in found[:3]] == ["queued"] * 3
    assert found[3:] == [Transition(jobs[0].id, "cancelled", stamps[0], 0)]


async def test_the_journal_continues_after_a_rewrite(tmp_path: Path) -> None:
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
        assert [event.id for event in transitions(tmp_path)] == [job.id for job in jobs]


async def test_a_compressed_journal_is_rejected(tmp_path: Path) -> None:
    server = redis_server(tmp_path)
    with started(server):
        await eventually(server.ready)
        async with Redis.from_url(server.url, socket_timeout=5) as redis:
            await redis.set("key", "value")
            await rewrite(redis)
        with pytest.raises(ValueError, match="is an RDB file"):
            list(transitions(tmp_path))


async def rewrite(redis: Redis) -> None:
    """Rewrite the append-only file, and wait until Redis has done so."""

    async def rewritten() -> bool:
        return int((await redis.info("persistence"))["aof_base_size"]) > 0

    assert not await rewritten()
    await redis.bgrewriteaof()  # type: ignore[no-untyped-call]  # redis-py has no types for it
    await eventually(rewritten)
