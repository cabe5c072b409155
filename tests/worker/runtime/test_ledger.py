"""The projection: every job reaches the ledger as it is, through crashes and outages."""

import asyncio
import random
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tandem_shared.errors import Unavailable
from tandem_shared.jobs.states import State
from tandem_shared.ledger.ledger import Ledger, open_ledger
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import Settings, load_settings
from tandem_worker.runtime.ledger import Projection
from tandem_worker.runtime.metrics import WorkerMetrics
from tandem_worker.task import task
from tests.conftest import eventually, started
from tests.postgres import postgres_server
from tests.shared.queue.model.shard import Shard
from tests.worker.workers import Client, working


def projection(queue: Queue, ledger: Ledger, consumer: str = "one", **given: object) -> Projection:
    return Projection(
        queue.events,
        queue.clock,
        ledger,
        load_settings(**given),
        consumer=consumer,
        running=[],
        metrics=WorkerMetrics([], 1),
    )


@pytest.fixture
async def ledger(any_ledger_url: str) -> AsyncIterator[Ledger]:
    async with open_ledger(load_settings(database_url=any_ledger_url)) as ledger:
        yield ledger


@pytest.fixture
async def shard(redis: Redis) -> AsyncIterator[Shard]:
    made = Shard(redis)
    await made.turn(0)
    await made.silence()
    await made.queue.events.join(100_000)
    yield made
    await made.queue.close()


async def live(shard: Shard, count: int, chance: random.Random) -> list[str]:
    """Submit jobs, and let some of them run and end at random."""
    worker = await shard.worker()
    ids = [await shard.add(payload=b'{"n": 1}', max_attempts=2) for _ in range(count)]
    for _ in range(2):
        for one in await worker.claim(count):
            to = chance.choice([State.SUCCEEDED, State.FAILED, State.RETRYING, State.QUEUED, None])
            body = b'{"type":"x","message":"m","retryable":true,"attempt":1}'
            if to is not None:
                assert await worker.end(one, to, body=body, delay=0.0) in ("ok", "failed")
        await shard.queue.cancel(chance.choice(ids))
        await shard.turn(0.1)
    return ids


async def agrees(shard: Shard, ledger: Ledger, ids: list[str]) -> bool:
    return [await ledger.get(id, tenant="default") for id in ids] == [
        await shard.get(id) for id in ids
    ]


async def test_rows_equal_the_records(shard: Shard, ledger: Ledger) -> None:
    ids = await live(shard, 40, random.Random(1))
    await projection(shard.queue, ledger).step(0.01)
    assert await agrees(shard, ledger, ids)
    assert await shard.queue.events.lag() == (0, 0.0)
    for id in ids:
        final = (await shard.get(id)).done
        assert await ledger.payload(id, tenant="default") == (b'{"n": 1}' if final else None)
        assert ((await shard.snapshot()).ttl[f"job:{id}"] > 0) == final


async def test_transactions_are_bounded_by_jobs_and_by_bytes(
    shard: Shard, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_worker.runtime.ledger.MAX_ROWS", 7)
    monkeypatch.setattr("tandem_worker.runtime.ledger.MAX_BYTES", 500)
    ids = await live(shard, 20, random.Random(2))
    await projection(shard.queue, ledger).step(0.01)
    assert await agrees(shard, ledger, ids)


async def test_two_consumers_take_over_from_one_that_died(shard: Shard, ledger: Ledger) -> None:
    one, two = projection(shard.queue, ledger), projection(shard.queue, ledger, "two")
    chance, ids = random.Random(3), []
    for _ in range(4):
        ids += await live(shard, 10, chance)
        # A consumer that dies after reading and before writing.
        await shard.queue.events.read_new("dead", block=0.01)
        ids += await live(shard, 10, chance)
        await asyncio.gather(one.step(0.01), two.step(0.01))
    two.takeover_seconds, two.check_seconds = 0.001, 0.0

    async def caught_up() -> bool:
        await asyncio.gather(one.step(0.01), two.step(0.01))
        lag = await shard.queue.events.lag()
        return lag is not None and lag.entries == 0

    await eventually(caught_up)
    assert await agrees(shard, ledger, ids)


async def test_entries_that_were_not_acknowledged_are_projected_again(
    shard: Shard, ledger: Ledger
) -> None:
    ids = await live(shard, 5, random.Random(4))
    taken = await shard.queue.events.read_new("one", block=0.01)
    assert taken is not None
    # The same consumer, restarted.
    running = asyncio.create_task(projection(shard.queue, ledger).run())

    async def followed() -> bool:
        lag = await shard.queue.events.lag()
        return lag is not None and lag.entries == 0

    await eventually(followed)
    running.cancel()
    assert await agrees(shard, ledger, ids)


async def test_a_job_that_cannot_be_written_does_not_stop_the_others(
    shard: Shard, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [await shard.add() for _ in range(3)]
    # A value that fits no column, as a record of a later format might have.
    await shard.redis.hset(f"{shard.queue.prefix}job:{ids[1]}", "max", "99999999999999999999")
    await projection(shard.queue, ledger).step(0.01)
    assert await agrees(shard, ledger, [ids[0], ids[2]])
    assert await ledger.get(ids[1], tenant="default") is None
    assert await shard.queue.events.lag() == (0, 0.0)


async def test_old_rows_are_removed_and_young_ones_stay(shard: Shard, ledger: Ledger) -> None:
    await live(shard, 30, random.Random(5))
    one = projection(shard.queue, ledger, ledger_keep=1.0, ledger_keep_failed=4e9)
    await one.step(0.01)
    text = "UPDATE tandem_jobs SET id = '00' || id, ended = 1 WHERE ended IS NOT NULL"
    await ledger.database.write([(text, [()])])
    one._swept = -1e9
    await one.sweep()
    left = {record.state async for record, _ in ledger.export()}
    assert State.FAILED in left
    assert left.isdisjoint({State.SUCCEEDED, State.CANCELLED})


@task("ledger.hello")
async def hello() -> str:
    """Return a greeting."""
    return "hello"


async def test_jobs_run_without_sql_and_the_ledger_catches_up(
    client: Client, redis_url: str, tmp_path: Path, server_data: Path
) -> None:
    place = server_data / f"crashing-{tmp_path.name}"
    place.mkdir(mode=0o711)
    server = await asyncio.to_thread(postgres_server, place)
    settings = Settings(database_url=server.url)
    async with (
        working(redis_url, tmp_path, hello, database_url=server.url),
        open_ledger(settings) as ledger,
    ):

        async def known(id: str) -> bool:
            try:
                return await ledger.get(id, tenant="default") == await client.record(id)
            except Unavailable:
                return False

        before = await client.submit(hello)
        assert await client.result(before) == "hello"  # before the server has started
        with started(server) as process:
            await eventually(lambda: known(before), 30)
            process.kill()
            await asyncio.to_thread(process.wait)
            during = [await client.submit(hello) for _ in range(20)]
            assert [await client.result(id) for id in during] == ["hello"] * 20
            lag = await client.queue.events.lag()
            assert lag is not None
            assert lag.entries > 0
            with pytest.raises(Unavailable):
                await ledger.get(before, tenant="default")
        (place / "postgres" / "postmaster.pid").unlink(missing_ok=True)
        with started(server):
            for id in during:
                await eventually(partial(known, id), 30)
