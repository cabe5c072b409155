"""The stream of events: entries and final records are kept until the ledger has them."""

import pytest
from redis.asyncio import Redis

from tandem_shared import catalogue
from tandem_shared.errors import Unavailable
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Submission
from tandem_shared.jobs.states import State
from tandem_shared.queue.events import LEDGER_FIELDS, EventBatch
from tandem_shared.queue.messages import Finish
from tandem_shared.queue.queue import Queue
from tests.api.fake_worker import ANY, FakeWorker
from tests.conftest import eventually
from tests.shared.queue.model.shard import Shard, Worker, job

BACKLOG = 1 << 30  # bytes


async def read(shard: Shard, consumer: str) -> EventBatch:
    batch = await shard.queue.events.read_new(consumer, block=0.01)
    assert batch is not None
    return batch


async def ended(shard: Shard, worker: Worker) -> str:
    id = await shard.add()
    assert await worker.end(await worker.take(), body=b"7") == "ok"
    return id


async def test_without_a_ledger_records_expire_at_once(shard: Shard) -> None:
    assert await shard.queue.events.lag() is None
    assert await shard.queue.events.read_new("one", block=0.01) is None
    id = await ended(shard, await shard.worker())
    assert (await shard.snapshot()).ttl[f"job:{id}"] > 0


async def test_a_ledger_reads_from_the_oldest_event_left(shard: Shard) -> None:
    first, second = await shard.add(), await shard.add()
    await shard.queue.events.join(BACKLOG)
    await shard.queue.events.join(BACKLOG)
    assert (await read(shard, "one")).jobs == [first, second]
    assert (await read(shard, "one")).jobs == []
    held = await shard.queue.events.read_pending("one")
    assert held is not None
    assert held.jobs == [first, second]


async def test_a_record_expires_only_once_the_ledger_has_it(shard: Shard) -> None:
    await shard.queue.events.join(BACKLOG)
    id = await ended(shard, await shard.worker())
    batch = await read(shard, "one")
    assert batch.jobs == [id]
    (values,) = await shard.queue.events.ledger_values([id], max_bytes=1 << 20)
    assert values is not None
    stamp = int(values[LEDGER_FIELDS.index("v")] or 0)
    assert (await shard.snapshot()).ttl[f"job:{id}"] == -1
    await shard.queue.events.acknowledge([], [(id, stamp - 1)])  # an earlier state was written
    assert (await shard.snapshot()).ttl[f"job:{id}"] == -1
    await shard.queue.events.acknowledge(batch.entries, [(id, stamp)])
    left = (await shard.snapshot()).ttl[f"job:{id}"]
    assert left > 0
    await shard.queue.events.acknowledge(batch.entries, [(id, stamp)])
    assert (await shard.snapshot()).ttl[f"job:{id}"] <= left


async def test_entries_stay_until_no_consumer_holds_them(shard: Shard) -> None:
    events = shard.queue.events
    await events.join(BACKLOG)
    first = await shard.add()
    one = await read(shard, "one")
    second = await shard.add()
    two = await read(shard, "two")
    assert (one.jobs, two.jobs) == ([first], [second])
    await events.acknowledge(two.entries, [])
    assert await events.recent_jobs(10) == [second, first]
    lag = await events.lag()
    assert lag is not None
    assert lag.entries == 2
    await events.acknowledge(one.entries, [])
    assert await events.recent_jobs(10) == []
    assert await events.lag() == (0, 0.0)


async def test_entries_of_a_dead_consumer_are_taken_over(shard: Shard) -> None:
    events = shard.queue.events
    await events.join(BACKLOG)
    id = await shard.add()
    await read(shard, "dead")
    assert (await events.take_over("alive", idle=60)).entries == []

    async def found() -> EventBatch | None:
        batch = await events.take_over("alive", idle=0.01)
        return batch if batch.entries else None

    batch = await eventually(found)
    assert batch is not None
    assert batch.jobs == [id]
    await events.acknowledge(batch.entries, [])
    assert await events.lag() == (0, 0.0)


async def test_ledger_values_have_payloads_of_final_jobs_and_a_byte_limit(
    shard: Shard,
) -> None:
    worker = await shard.worker()
    final = await ended(shard, worker)
    waiting = await shard.add(payload=b'{"x": "' + b"y" * 1000 + b'"}')
    values = await shard.queue.events.ledger_values([final, "nobody", waiting], max_bytes=1 << 20)
    assert values[1] is None
    assert [one and one[-1] for one in (values[0], values[2])] == ["{}", None]
    assert len(await shard.queue.events.ledger_values([final, waiting], max_bytes=10)) == 1


async def test_jobs_whose_end_the_ledger_has_are_not_read_again(shard: Shard) -> None:
    events = shard.queue.events
    await events.join(BACKLOG)
    worker = await shard.worker()
    written = await ended(shard, worker)
    unconfirmed = await ended(shard, worker)  # as after a crash or a lost reply
    waiting = await shard.add()
    batch = await read(shard, "one")
    (values,) = await events.ledger_values([written], max_bytes=1 << 20, entry=batch.entries[0])
    assert values is not None
    await events.acknowledge([], [(written, int(values[LEDGER_FIELDS.index("v")] or 0))])
    found = await events.ledger_values(
        [written, waiting, unconfirmed], max_bytes=1 << 20, entry=batch.entries[0]
    )
    assert [one is not None for one in found] == [False, True, True]
    # Without an entry, every record is returned.
    assert await events.ledger_values([written], max_bytes=1 << 20) == [values]


async def test_records_that_expire_since_before_the_join_are_read(shard: Shard) -> None:
    worker = await shard.worker()
    before = await ended(shard, worker)
    assert (await shard.snapshot()).ttl[f"job:{before}"] > 0
    await shard.queue.events.join(BACKLOG)
    after = await ended(shard, worker)
    batch = await read(shard, "one")
    assert batch.jobs == [before, after]
    assert None not in await shard.queue.events.ledger_values(
        batch.jobs, max_bytes=1 << 20, entry=batch.entries[0]
    )
    # A new group may belong to a ledger that has none of these jobs.
    await shard.redis.xgroup_destroy(f"{shard.queue.prefix}events", "ledger")
    await shard.queue.events.join(BACKLOG)
    again = await read(shard, "one")
    assert again.jobs == [before, after]
    assert None not in await shard.queue.events.ledger_values(
        again.jobs, max_bytes=1 << 20, entry=again.entries[0]
    )


async def test_bytes_that_are_not_utf_8_are_replaced(shard: Shard) -> None:
    id = await ended(shard, await shard.worker())
    waiting = await shard.add()
    keys = [f"{shard.queue.prefix}job:{one}" for one in (id, waiting)]
    for key in keys:
        await shard.redis.hset(key, "ck", b"\xff!")
    values = await shard.queue.events.ledger_values([id, waiting], max_bytes=1 << 20)
    for key in keys:
        await shard.redis.hdel(key, "ck")
    assert [one and (one[LEDGER_FIELDS.index("ck")], one[-1]) for one in values] == [
        ("\ufffd!", "{}"),
        ("\ufffd!", None),
    ]


async def test_submissions_stop_while_the_ledger_is_too_far_behind(
    shard: Shard,
) -> None:
    await shard.queue.events.join(2000)
    await shard.add(payload=b'"%d"' % 10**900)
    await shard.add(payload=b'"%d"' % 10**900)
    before = await shard.snapshot()
    with pytest.raises(Unavailable, match="behind"):
        await shard.queue.submit(job())
    assert (await shard.snapshot()).jobs == before.jobs
    await shard.queue.events.acknowledge((await read(shard, "one")).entries, [])
    await shard.add()


@pytest.mark.parametrize(
    ("payload", "result", "together"), [(2, 2, 500), (2, 2, 1), (3000, 2, 100), (2, 9000, 50)]
)
async def test_a_ledger_that_stands_still_ends_at_a_known_size_of_redis(
    redis: Redis, payload: int, result: int, together: int
) -> None:
    limit = 4 << 20
    queue = Queue(redis)
    await queue.events.join(limit)
    worker = FakeWorker(queue)
    await worker.publish(ANY)
    options = JobOptions(timeout=30)

    async def used() -> int:
        return int((await redis.info("memory"))["used_memory"])

    def submission() -> Submission:
        data = b'"%s"' % (b"x" * payload)
        return Submission(id=new_id(), task=ANY.name, payload=data, options=options)

    async def fill(size: int) -> None:
        number = 0
        while await used() < size:
            number += 1
            await queue.submit_many([submission() for _ in range(together)])
            claim = await queue.claim(
                "hand-1", number, slots=together, tasks=catalogue.digest([ANY]), queues=["default"]
            )
            body = b'"%s"' % (b"x" * result)
            await queue.finish(
                [
                    Finish(one.id, one.token, State.SUCCEEDED, "succeeded", body)
                    for one in claim.jobs
                ]
            )

    before = await used()
    with pytest.raises(Unavailable, match="behind"):
        await fill(before + 10 * limit)
    assert 0.7 < (await used() - before) / limit < 1.5
    await queue.close()


async def test_a_ledger_can_join_an_empty_redis_again(shard: Shard) -> None:
    await shard.queue.events.join(BACKLOG)
    await shard.queue._redis.delete(f"{shard.queue.prefix}events")
    assert await shard.queue.events.read_new("one", block=0.01) is None
    assert await shard.queue.events.read_pending("one") is None
    assert (await shard.queue.events.take_over("one", idle=0)).entries == []
    id = await shard.add()
    await shard.queue.events.join(BACKLOG)
    assert (await read(shard, "one")).jobs == [id]
