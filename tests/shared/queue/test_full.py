"""Full memory and full queues: new jobs are refused, accepted ones run and are not lost."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tandem_shared.errors import Full, Unavailable
from tandem_shared.jobs.states import FINAL, State
from tandem_shared.queue.messages import Report
from tests.conftest import eventually
from tests.shared.queue.model.shard import Shard, job

SPARE_BYTES = 3 << 20  # of Redis' memory, beyond what an empty one takes


@pytest.fixture
async def small(redis: Redis) -> AsyncIterator[Shard]:
    """A shard on a Redis with little memory; final jobs are kept for a second."""
    used = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", used + SPARE_BYTES)
    made = Shard(redis, keep=1.0)
    await made.turn(0)
    await made.silence()
    yield made
    await made.queue.close()
    await redis.config_set("maxmemory", 0)


async def fill(shard: Shard) -> list[str]:
    """Submits until Redis refuses; no ticks happen meanwhile."""
    ids: list[str] = []

    async def submit() -> None:
        while len(ids) < 1000:
            ids.append(await shard.add(payload=b'"%s"' % (b"x" * 50_000)))

    with pytest.raises(Unavailable, match="no memory left"):
        await submit()
    assert ids
    return ids


async def test_accepted_jobs_finish_without_memory(
    small: Shard,
) -> None:
    ids = await fill(small)
    await small.redis.config_set("maxmemory", 1)  # far exceeded
    worker = await small.worker()
    assert await small.queue.cancel(ids.pop())
    ended = {}
    while claimed := await worker.claim(50):
        assert await worker.beat() == (True, [], [])
        for one in claimed:
            assert await worker.end(one, body=b'"done"') == "ok"
            ended[one.id] = await small.state(one.id)
    assert ended == dict.fromkeys(ids, State.SUCCEEDED)
    await worker.lose()
    await small.queue.retire(worker.id)

    await small.redis.config_set(
        "maxmemory", (await small.redis.info("memory"))["used_memory"] + SPARE_BYTES
    )

    async def expired() -> bool:
        return not any(await small.queue.get_many(ids))

    await eventually(expired)
    await small.queue.tick()
    assert await fill(small)


async def test_a_job_lost_while_memory_is_full_runs_again(small: Shard) -> None:
    await fill(small)
    first, second = await small.worker(), await small.worker()
    claimed = (await first.claim(1))[0]
    await small.redis.config_set("maxmemory", 1)
    await small.silence()
    again = (await second.claim(1))[0]
    assert (again.id, again.attempt) == (claimed.id, 2)
    assert await first.end(claimed) == "lost"
    assert await second.end(again, State.RETRYING, body=b"{}", delay=0.0) == "ok"


async def test_output_waits_for_memory(small: Shard) -> None:
    await fill(small)
    worker = await small.worker()
    one = (await worker.claim(1))[0]
    await small.redis.config_set("maxmemory", 1)
    with pytest.raises(Unavailable, match="no memory left"):
        await small.report(Report(one.id, one.token, 1, "output", b"1"), limit=1000)
    await small.redis.config_set("maxmemory", 0)
    assert await small.report(Report(one.id, one.token, 1, "output", b"1"), limit=1000) == ["ok"]


async def test_new_jobs_do_not_use_the_last_tenth_of_memory(small: Shard) -> None:
    id = await small.add(idempotency_key="known", payload=b"1")
    used = (await small.redis.info("memory"))["used_memory"]
    await small.redis.config_set("maxmemory", int(used / 0.95))
    await small.queue.tick()
    with pytest.raises(Full, match="out of memory"):
        await small.add()
    assert await small.add(idempotency_key="known", payload=b"1") == id
    await small.redis.config_set("maxmemory", used * 2)
    await small.queue.tick()
    await small.add()


async def test_a_full_queue_refuses_jobs_and_other_queues_do_not(redis: Redis) -> None:
    shard = Shard(redis, backlog=3)
    await shard.turn(0)
    await shard.silence()
    jobs = [job(queue="a", idempotency_key=str(n), delay=n % 2) for n in range(5)] + [
        job(queue="b")
    ]
    answers = await shard.queue.submit_many(jobs)
    assert [isinstance(answer, Full) for answer in answers] == [False] * 3 + [True] * 2 + [False]
    assert "'a'" in str(answers[3])
    again = await shard.queue.submit_many(jobs)
    assert [getattr(answer, "id", None) for answer in again[:3]] == [one.id for one in jobs[:3]]
    with pytest.raises(Full):
        await shard.queue.submit(job(queue="a"))

    worker = await shard.worker(queues=("a",))
    first, _ = await worker.claim()
    with pytest.raises(Full):  # running jobs count, since they may come back
        await shard.queue.submit(job(queue="a"))
    await worker.end(first)
    await shard.queue.submit(job(queue="a"))
    with pytest.raises(Full):
        await shard.queue.submit(job(queue="a"))
    assert (
        len([one for one in (await shard.snapshot()).jobs.values() if one["state"] not in FINAL])
        == 4
    )
    await shard.queue.close()
