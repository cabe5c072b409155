"""Jobs of plain arq clients: moved to our queue once and run, or skipped if they are not JSON."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from redis.asyncio import Redis

from tandem_shared.jobs.record import Record
from tandem_shared.jobs.states import State
from tandem_worker import task
from tandem_worker.runtime.arq_jobs import deserialize, serialize, to_submission
from tests.conftest import eventually
from tests.worker.workers import Client, make_worker, working


@asynccontextmanager
async def plain_client(url: str, **serializers: Any) -> AsyncIterator[ArqRedis]:
    """A pool as a program creates it that only uses arq."""
    pool = await create_pool(
        RedisSettings(unix_socket_path=unquote(urlsplit(url).path)), **serializers
    )
    try:
        yield pool
    finally:
        await pool.aclose(close_connection_pool=True)


@pytest.fixture
async def plain(client: Client, redis_url: str) -> AsyncIterator[ArqRedis]:
    async with plain_client(
        redis_url, job_serializer=serialize, job_deserializer=deserialize
    ) as pool:
        yield pool


ran: list[Any] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    ran.clear()


@task("keep", queue="side")
async def keep(payload: dict[str, Any]) -> Any:
    ran.append(payload)
    return payload


async def records(client: Client, redis: Redis) -> list[Record]:
    prefix = f"{client.queue.prefix}job:"
    keys = sorted(key.decode().removeprefix(prefix) for key in await redis.keys(f"{prefix}*"))
    return [await client.record(id) for id in keys]


async def test_a_plain_clients_job_is_run(
    client: Client, redis: Redis, redis_url: str, tmp_path: Path, plain: ArqRedis
) -> None:
    async with working(redis_url, tmp_path, keep, queues="default,side"):
        await plain.enqueue_job("keep", url="https://example.com", n=1)
        await plain.enqueue_job("keep", {"one": "object"})
        await plain.enqueue_job("keep", 1, "two", three=3)
        await eventually(lambda: len(ran) == 3)
    expected: list[dict[str, Any]] = [
        {"url": "https://example.com", "n": 1},
        {"one": "object"},
        {"args": [1, "two"], "three": 3},
    ]
    assert sorted(ran, key=str) == sorted(expected, key=str)
    found = await records(client, redis)
    assert {(record.task, record.state, record.queue) for record in found} == {
        ("keep", State.SUCCEEDED, "side")
    }
    assert await redis.keys("arq:*") == []


async def test_a_deferred_job_waits_for_its_time(
    client: Client, redis: Redis, redis_url: str, tmp_path: Path, plain: ArqRedis
) -> None:
    async with working(redis_url, tmp_path, keep, queues="side"):
        await plain.enqueue_job("keep", _defer_by=3600, later=1)
        await plain.enqueue_job("keep", _defer_by=0.3, sooner=1)
        await eventually(lambda: ran == [{"sooner": 1}])
        states = sorted(record.state.value for record in await records(client, redis))
        assert states[0] == "scheduled"


async def test_an_id_that_comes_twice_runs_once(
    client: Client, redis: Redis, redis_url: str, tmp_path: Path, plain: ArqRedis
) -> None:
    async with working(redis_url, tmp_path, keep, queues="side") as worker:
        await plain.enqueue_job("keep", _job_id="mine", n=1)
        await eventually(lambda: worker.jobs_complete == 1)
        await plain.enqueue_job("keep", _job_id="mine", n=1)
        await plain.enqueue_job("keep", _job_id="other", n=2)
        await eventually(lambda: len(ran) == 2)
        await eventually(lambda: emptied(redis))
    assert ran == [{"n": 1}, {"n": 2}]
    assert len(await records(client, redis)) == 2


async def emptied(redis: Redis) -> bool:
    return not await redis.exists("arq:queue")


async def test_jobs_that_are_not_json_are_skipped_and_block_no_others(
    client: Client, redis: Redis, redis_url: str, tmp_path: Path, plain: ArqRedis
) -> None:
    async with plain_client(redis_url) as pickling:
        for n in range(120):  # more than one batch
            await pickling.enqueue_job("keep", _job_id=f"pickled-{n}", n=n)
    await plain.enqueue_job("keep", mine=1)
    worker = make_worker(redis_url, tmp_path, keep, queues="side", burst=True)
    await worker.async_run()  # the burst ends, although they stay
    await worker.close()
    assert ran == [{"mine": 1}]
    assert await redis.zcard("arq:queue") == 120
    assert await redis.exists("arq:job:pickled-7")


async def test_a_job_of_an_unknown_task_waits_for_a_worker_that_knows_it(
    client: Client, redis: Redis, redis_url: str, tmp_path: Path, plain: ArqRedis
) -> None:
    @task("unknown")
    async def unknown(payload: dict[str, Any]) -> int:
        return 7

    await plain.enqueue_job("unknown", n=1)
    async with working(redis_url, tmp_path, keep):
        (record,) = await eventually(lambda: records(client, redis))
        await client.reaches(record.id, State.WAITING)
        async with working(redis_url, tmp_path, unknown):
            assert await client.result(record.id) == 7


def test_an_exception_is_written_as_its_text() -> None:
    written = deserialize(serialize({"r": ValueError("no"), "a": (1,), "k": {"n": 2**70}}))
    assert written == {"r": "ValueError: no", "a": [1], "k": {"n": 2**70}}
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        serialize({"a": object()})


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x80\x04pickled", b"[]", b"{}",
        b'{"f": 1, "a": [], "k": {}}', b'{"f": "t", "a": 1, "k": {}}',
        b'{"f": "t", "a": [], "k": []}', b'{"f": "t", "a": []}', b"\xff", b'"text"',
    ],
)  # fmt: skip
def test_bytes_that_are_not_an_arq_job_make_no_submission(data: bytes) -> None:
    assert to_submission("x", 1.0, data, {}) is None


def test_a_submission_takes_its_fields_from_the_arq_job_and_the_task() -> None:
    entry = keep.__tandem_task__.entry  # type: ignore[attr-defined] # `task` has put it there
    body = msgspec.json.encode({"f": "keep", "a": [], "k": {"n": 1}, "t": None, "et": 1})
    job = to_submission("mine", 1234.5, body, {"keep": entry})
    assert job is not None
    assert (job.task, job.queue, job.run_at, job.idempotency_key) == (
        "keep",
        "side",
        1234.5,
        "arq:mine",
    )
    assert (job.payload, job.options.timeout, job.options.retry["max_attempts"]) == (
        b'{"n":1}',
        30.0,
        3,
    )
    tick = msgspec.json.encode({"f": "cron:x", "a": [], "k": {}})
    keys = {
        made.idempotency_key
        for due in (5.1, 5.9, 6.1)
        if (made := to_submission("same", due, tick, {}))
    }
    assert keys == {"arq:same:5", "arq:same:6"}
