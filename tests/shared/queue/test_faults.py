"""Faults of Redis: lost scripts, hangs, full memory, broken connections; and arq's own jobs."""

import asyncio
from typing import Any

import msgspec
import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004 - redis-py's
    NoPermissionError,
    ResponseError,
)

from tandem_shared.errors import Unavailable
from tandem_shared.jobs.record import Submission
from tandem_shared.jobs.states import State
from tandem_shared.queue.bells import open_connection
from tandem_shared.queue.connections import connect
from tandem_shared.queue.queue import Queue
from tandem_shared.queue.scripts import execute, translate_errors
from tests.conftest import eventually
from tests.shared.queue.model.shard import Shard, job


async def test_scripts_are_sent_again_after_redis_forgot_them(shard: Shard) -> None:
    worker = await shard.worker()
    for _ in range(2):
        await shard.redis.script_flush()
        id = await shard.add()
        await shard.redis.script_flush()
        claimed = await worker.take()
        await shard.redis.script_flush()
        assert await worker.end(claimed) == "ok"
        assert await shard.state(id) is State.SUCCEEDED


async def calls(queue: Queue) -> list[object]:
    return await asyncio.gather(
        queue.submit(job()), queue.submit_many([job()]), queue.get("x"), queue.payload("x"),
        queue.cancel("x"), queue.output("x"), queue.tick(), queue.ping(),
        queue.catalogue_entries(), queue.catalogue_stamp(), queue.stats(), queue.workers(),
        queue.claim("w", 1, slots=1, tasks="x", queues=["default"]), queue.finish([]),
        queue.beat("w", "x", []), queue.report([], limit=1), queue.arq.pending(),
        queue.retire("w"),
        return_exceptions=True,
    )  # fmt: skip


def test_writing_to_a_closed_transport_raises_a_connection_error(redis_url: str) -> None:
    async def write_to_a_closed_one() -> None:
        redis = connect(redis_url)
        try:
            connection = await open_connection(redis, 5)
            writer: Any = connection._writer
            writer.transport.abort()
            closed = asyncio.Event()
            asyncio.get_running_loop().call_soon(closed.set)
            await closed.wait()
            with pytest.raises((ConnectionError, OSError)):
                await connection.send_command("PING")
        finally:
            await redis.aclose()

    uvloop.run(write_to_a_closed_one())


async def test_every_call_without_redis_raises_unavailable() -> None:
    redis = connect("redis://somebody:SECRET@127.0.0.1:1/0", timeout=1)
    answers = await calls(Queue(redis))
    await redis.aclose()
    assert [type(answer) for answer in answers] == [Unavailable] * len(answers)
    assert not [
        answer for answer in answers if "SECRET" in str(answer) or "127.0.0.1" in str(answer)
    ]


async def test_a_hanging_redis_times_out(redis: Redis, redis_url: str) -> None:
    impatient = connect(redis_url, timeout=0.2)
    queue = Queue(impatient)
    await queue.submit(job())
    await execute(redis, "CLIENT", "PAUSE", 60_000, "WRITE")
    try:
        with pytest.raises(Unavailable):
            await queue.submit(job())
    finally:
        await execute(redis, "CLIENT", "UNPAUSE")
    await queue.submit(job())
    await impatient.aclose()


async def test_a_full_redis_is_unavailable_until_it_has_memory(redis: Redis) -> None:
    queue = Queue(redis)
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable, match="no memory left"):
            await queue.submit(job())
    finally:
        await redis.config_set("maxmemory", 0)
    await queue.submit(job())


async def test_a_replica_is_unavailable_for_writes(redis: Redis) -> None:
    queue = Queue(redis)
    await execute(redis, "REPLICAOF", "127.0.0.1", 1)
    try:
        for call in (queue.ping, queue.tick):
            with pytest.raises(Unavailable, match="READONLY"):
                await call()
    finally:
        await execute(redis, "REPLICAOF", "NO", "ONE")
    await queue.ping()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BusyLoadingError("Redis is loading the dataset in memory"), "LOADING"),
        (ResponseError("MASTERDOWN Link with MASTER is down"), "MASTERDOWN"),
        (ResponseError("CLUSTERDOWN The cluster is down"), "CLUSTERDOWN"),
        (ResponseError("MOVED 15495 10.0.0.1:6379"), "MOVED"),
        (ResponseError("ASK 15495 10.0.0.1:6379"), "ASK"),
        (AuthenticationError("invalid username-password pair"), "NOAUTH"),
        (ResponseError("-NOAUTH Authentication required."), "NOAUTH"),
        (NoPermissionError("this user has no permissions"), "NOPERM"),
        (ResponseError("The user executing the script: ACL failure in script"), "NOPERM"),
    ],
)  # fmt: skip
def test_a_redis_that_cannot_serve_is_unavailable_and_says_why(error: Exception, code: str) -> None:
    with pytest.raises(Unavailable, match=rf"\({code}\): [a-zA-Z]") as caught, translate_errors():
        raise error
    assert "10.0.0.1" not in str(caught.value)


async def test_a_bug_is_not_reported_as_unavailable(redis: Redis) -> None:
    with pytest.raises(Exception, match="unknown command") as caught, translate_errors():
        await execute(redis, "NONSENSE")
    assert not isinstance(caught.value, Unavailable)


async def test_a_broken_connection_is_replaced(shard: Shard) -> None:
    await shard.add()
    await execute(shard.redis, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")

    async def again() -> bool:
        try:
            await shard.add()
        except Unavailable:
            return False
        return True

    await eventually(again)


async def test_a_ping_is_a_write(shard: Shard) -> None:
    await shard.redis.config_resetstat()
    assert 0 < await shard.queue.ping() < 5
    assert (await shard.redis.info("commandstats"))["cmdstat_hdel"]["calls"] == 1


async def enqueue(shard: Shard, foreign: str, due: int, **kwargs: object) -> None:
    """Enqueues a job as arq's client does, with a JSON serializer."""
    body = msgspec.json.encode({"t": None, "f": "t", "a": [], "k": kwargs, "et": due})
    await shard.redis.psetex(f"arq:job:{foreign}", 60_000, body)
    await shard.redis.zadd("arq:queue", {foreign: due})


def ours(foreign: str, run_at: float | None = None) -> tuple[str, Submission]:
    return foreign, job(idempotency_key=f"arq:{foreign}", run_at=run_at)


async def test_waiting_arq_jobs_are_listed(shard: Shard) -> None:
    assert await shard.queue.arq.pending() == []
    await enqueue(shard, "one", 1500, n=1)
    ((foreign, due, body),) = await shard.queue.arq.pending()
    assert (foreign, due) == ("one", 1.5)
    assert body is not None
    assert msgspec.json.decode(body)["k"] == {"n": 1}


async def test_arq_jobs_are_adopted_once(shard: Shard) -> None:
    await enqueue(shard, "one", shard.ms)
    await enqueue(shard, "two", shard.ms + 5000)
    await shard.redis.set("arq:retry:one", 1)
    jobs = [ours("one"), ours("two", run_at=(shard.ms + 5000) / 1000)]
    first = await shard.queue.arq.adopt(jobs)
    assert first == [job.id for _, job in jobs]
    # Another worker was first.
    assert await shard.queue.arq.adopt([ours("one"), ours("two")]) == ["", ""]
    assert await shard.redis.keys("arq:*") == []
    assert [await shard.state(id) for id in first] == [State.QUEUED, State.SCHEDULED]
    worker = await shard.worker()
    assert (await worker.take()).id == first[0]


async def test_an_arq_job_enqueued_again_under_its_id_runs_once(shard: Shard) -> None:
    ids = []
    for _ in range(2):
        await enqueue(shard, "one", shard.ms)
        ids += await shard.queue.arq.adopt([ours("one")])
    assert ids[0] == ids[1]
    assert (await shard.snapshot()).counts == {"default queued": 1}
