"""The stream of events, as a ledger reads it: kept until it is read by all, then cut off; and records with it."""

import pytest

from tandem_shared.errors import Unavailable
from tandem_shared.queue.events import LEDGER_FIELDS, EventBatch
from tests.conftest import eventually
from tests.shared.queue.model.shard import Shard, Worker, job

BACKLOG = 1000


async def read(shard: Shard, consumer: str) -> EventBatch:
    taken = await shard.queue.events.read_new(consumer, block=0.01)
    assert taken is not None
    return taken


async def ended(shard: Shard, worker: Worker) -> str:
    id = await shard.add()
    assert await worker.end(await worker.take(), body=b"7") == "ok"
    return id


async def test_without_a_ledger_the_stream_is_short_and_records_fade(shard: Shard) -> None:
    assert await shard.queue.events.lag() is None
    assert await shard.queue.events.read_new("one", block=0.01) is None
    id = await ended(shard, await shard.worker())
    assert (await shard.snapshot()).ttl[f"job:{id}"] > 0


async def test_who_joins_reads_from_the_first_event_that_is_left(shard: Shard) -> None:
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
    taken = await read(shard, "one")
    assert taken.jobs == [id]
    (facts,) = await shard.queue.events.ledger_values([id], max_bytes=1 << 20)
    assert facts is not None
    stamp = int(facts[LEDGER_FIELDS.index("v")] or 0)
    assert (await shard.snapshot()).ttl[f"job:{id}"] == -1
    await shard.queue.events.acknowledge([], [(id, stamp - 1)])  # what was written is not its end
    assert (await shard.snapshot()).ttl[f"job:{id}"] == -1
    await shard.queue.events.acknowledge(taken.entries, [(id, stamp)])
    left = (await shard.snapshot()).ttl[f"job:{id}"]
    assert left > 0
    await shard.queue.events.acknowledge(taken.entries, [(id, stamp)])
    assert (await shard.snapshot()).ttl[f"job:{id}"] <= left


async def test_what_any_consumer_holds_stays_in_the_stream(shard: Shard) -> None:
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


async def test_the_entries_of_a_consumer_that_died_are_inherited(shard: Shard) -> None:
    events = shard.queue.events
    await events.join(BACKLOG)
    id = await shard.add()
    await read(shard, "dead")
    assert (await events.take_over("alive", idle=60)).entries == []

    async def found() -> EventBatch | None:
        taken = await events.take_over("alive", idle=0.01)
        return taken if taken.entries else None

    taken = await eventually(found)
    assert taken is not None
    assert taken.jobs == [id]
    await events.acknowledge(taken.entries, [])
    assert await events.lag() == (0, 0.0)


async def test_only_final_jobs_are_read_with_their_payload_and_only_as_many_as_there_is_room(
    shard: Shard,
) -> None:
    worker = await shard.worker()
    final = await ended(shard, worker)
    waiting = await shard.add(payload=b'{"x": "' + b"y" * 1000 + b'"}')
    facts = await shard.queue.events.ledger_values([final, "nobody", waiting], max_bytes=1 << 20)
    assert facts[1] is None
    assert [one and one[-1] for one in (facts[0], facts[2])] == ["{}", None]
    assert len(await shard.queue.events.ledger_values([final, waiting], max_bytes=10)) == 1


async def test_what_the_ledger_has_to_the_end_is_not_read_again(shard: Shard) -> None:
    events = shard.queue.events
    await events.join(BACKLOG)
    worker = await shard.worker()
    written = await ended(shard, worker)
    unconfirmed = await ended(shard, worker)  # as after a crash, or a reply that was lost
    waiting = await shard.add()
    taken = await read(shard, "one")
    (facts,) = await events.ledger_values([written], max_bytes=1 << 20, entry=taken.entries[0])
    assert facts is not None
    await events.acknowledge([], [(written, int(facts[LEDGER_FIELDS.index("v")] or 0))])
    found = await events.ledger_values(
        [written, waiting, unconfirmed], max_bytes=1 << 20, entry=taken.entries[0]
    )
    assert [one is not None for one in found] == [False, True, True]
    assert await events.ledger_values([written], max_bytes=1 << 20) == [
        facts
    ]  # who asks without an entry wants to know


async def test_what_expires_since_before_a_ledger_joined_is_read(shard: Shard) -> None:
    worker = await shard.worker()
    before = await ended(shard, worker)
    assert (await shard.snapshot()).ttl[f"job:{before}"] > 0
    await shard.queue.events.join(BACKLOG)
    after = await ended(shard, worker)
    taken = await read(shard, "one")
    assert taken.jobs == [before, after]
    assert None not in await shard.queue.events.ledger_values(
        taken.jobs, max_bytes=1 << 20, entry=taken.entries[0]
    )
    # A group that is made anew may be for a ledger that has none of them.
    await shard.redis.xgroup_destroy(f"{shard.queue.prefix}events", "ledger")
    await shard.queue.events.join(BACKLOG)
    again = await read(shard, "one")
    assert again.jobs == [before, after]
    assert None not in await shard.queue.events.ledger_values(
        again.jobs, max_bytes=1 << 20, entry=again.entries[0]
    )


async def test_bytes_that_are_no_text_are_read_as_well_as_they_can_be(shard: Shard) -> None:
    id = await ended(shard, await shard.worker())
    waiting = await shard.add()
    keys = [f"{shard.queue.prefix}job:{one}" for one in (id, waiting)]
    for key in keys:
        await shard.redis.hset(key, "ck", b"\xff!")
    facts = await shard.queue.events.ledger_values([id, waiting], max_bytes=1 << 20)
    for key in keys:
        await shard.redis.hdel(key, "ck")
    assert [one and (one[LEDGER_FIELDS.index("ck")], one[-1]) for one in facts] == [
        ("\ufffd!", "{}"),
        ("\ufffd!", None),
    ]


async def test_a_ledger_that_is_too_far_behind_stops_submissions_until_it_has_read(
    shard: Shard,
) -> None:
    await shard.queue.events.join(2)
    await shard.add()
    await shard.add()
    before = await shard.snapshot()
    with pytest.raises(Unavailable, match="behind"):
        await shard.queue.submit(job())
    assert (await shard.snapshot()).jobs == before.jobs
    await shard.queue.events.acknowledge((await read(shard, "one")).entries, [])
    await shard.add()


async def test_a_new_redis_is_joined_again(shard: Shard) -> None:
    await shard.queue.events.join(BACKLOG)
    await shard.queue._redis.delete(f"{shard.queue.prefix}events")
    assert await shard.queue.events.read_new("one", block=0.01) is None
    assert await shard.queue.events.read_pending("one") is None
    assert (await shard.queue.events.take_over("one", idle=0)).entries == []
    id = await shard.add()
    await shard.queue.events.join(BACKLOG)
    assert (await read(shard, "one")).jobs == [id]
