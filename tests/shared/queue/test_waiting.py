"""Parked jobs: set aside while something keeps them from running, and brought back afterwards."""

import pytest

from tandem_shared.jobs.states import State
from tandem_shared.queue import scripts
from tandem_shared.queue.queue import Queue
from tests.shared.queue.model.shard import CLOCK, Shard, Worker, job


async def test_an_unknown_task_waits_for_a_worker_that_knows_it(shard: Shard) -> None:
    id = await shard.add(task="u", priority="high")
    ignorant = await shard.worker()
    assert await ignorant.claim() == []
    record = await shard.get(id)
    assert (record.state, record.attempt) == (State.WAITING, 0)
    assert await shard.place(id) == ["park:task:default:1:u"]
    assert await ignorant.claim() == []
    assert await shard.events(id) == ["queued", "waiting"]
    knowing = await shard.worker({"u": 1})
    assert (await knowing.take()).id == id
    assert await shard.events(id) == ["queued", "waiting", "running"]
    assert "parked" not in (await shard.snapshot()).values


async def test_a_newer_version_waits_for_a_newer_worker(shard: Shard) -> None:
    await shard.worker({"t": 2}, queues=["elsewhere"])
    id = await shard.add(version=2)
    old = await shard.worker({"t": 1})
    assert await old.claim() == []
    assert await shard.state(id) is State.WAITING
    assert await old.claim() == []
    new = await shard.worker({"t": 3})
    assert (await new.take()).id == id


async def test_an_older_version_does_not_wait(shard: Shard) -> None:
    id = await shard.add(version=1)
    assert (await (await shard.worker({"t": 2})).take()).id == id


async def test_parked_jobs_a_worker_cannot_run_do_not_block_others(shard: Shard) -> None:
    await shard.worker({"u": 3}, queues=["elsewhere"])
    await shard.submit(*(job("u", version=3) for _ in range(9)))
    id = await shard.add(task="u", version=1)
    ignorant = await shard.worker()
    for _ in range(3):
        assert await ignorant.claim() == []
    assert await shard.state(id) is State.WAITING
    worker = await shard.worker({"u": 2})
    assert [one.id for one in await worker.claim(slots=1)] == [id]


async def test_parked_jobs_of_other_queues_do_not_block_others(shard: Shard) -> None:
    await shard.submit(*(job("u", queue="mail") for _ in range(9)))
    id = await shard.add(task="u")
    await (await shard.worker(queues=["mail"])).claim()
    await (await shard.worker()).claim()
    worker = await shard.worker({"u": 1})
    assert [one.id for one in await worker.claim(slots=1)] == [id]
    assert await worker.claim() == []


async def test_parked_jobs_come_back_in_portions(shard: Shard) -> None:
    ids = []
    for _ in range(10):
        await shard.turn(0.01)
        ids.append(await shard.add(task="u"))
    await (await shard.worker()).claim()
    worker = await shard.worker({"u": 1})
    claims = [await worker.call(slots=4) for _ in range(4)]
    assert [[one.id for one in claim.jobs] for claim in claims] == [ids[:4], ids[4:8], ids[8:], []]
    assert [claim.more for claim in claims] == [True, True, False, False]


async def test_parked_jobs_respect_the_byte_limit_of_a_claim(shard: Shard) -> None:
    await shard.submit(*(job("u", payload=b'"%s"' % (b"x" * 60)) for _ in range(2)))
    await (await shard.worker()).claim()
    worker = await shard.worker({"u": 1})
    assert [len((await worker.call(max_bytes=100)).jobs) for _ in range(3)] == [1, 1, 0]


def newer(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the shard scripts of a later format."""
    monkeypatch.setattr(scripts, "RECORD_FORMAT", 2)
    shard.queue = Queue(shard.redis, clock=f"{CLOCK} --[[ newer ]]")


async def test_a_newer_format_waits_for_newer_scripts(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = await shard.add()
    await shard.redis.hset(f"{shard.queue.prefix}job:{id}", "f", 2)
    worker = await shard.worker()
    assert await worker.claim() == []
    assert await shard.place(id) == ["park:format:default:2"]
    assert await worker.claim() == []
    other = await shard.worker(queues=["mail"])
    newer(shard, monkeypatch)
    assert await other.claim() == []
    assert (await worker.take()).id == id


async def keyed(shard: Shard, number: int, limit: int = 1) -> tuple[list[str], Worker]:
    ids = []
    for _ in range(number):
        await shard.turn(0.01)
        ids.append(await shard.add(concurrency_key="k", concurrency_limit=limit, max_attempts=9))
    return ids, await shard.worker()


async def test_the_limit_of_a_concurrency_key_holds(shard: Shard) -> None:
    ids, worker = await keyed(shard, 5, limit=2)
    first = await worker.claim()
    assert [one.id for one in first] == ids[:2]
    assert [await shard.state(id) for id in ids[2:]] == [State.WAITING] * 3
    assert await worker.claim() == []
    await worker.end(first[0])
    assert [one.id for one in await worker.claim()] == ids[2:3]
    await worker.end(first[1])
    assert [one.id for one in await worker.claim()] == ids[3:4]
    assert await worker.claim() == []


@pytest.mark.parametrize("how", ["succeeded", "failed", "retrying", "queued", "cancelled", "lost"])
async def test_every_end_of_an_attempt_wakes_the_next(shard: Shard, how: str) -> None:
    ids, worker = await keyed(shard, 2)
    claimed = await worker.take()
    await worker.end_as(claimed, how)
    # The job that came back may be first again, but never both.
    (again,) = await worker.claim()
    assert again.id == (ids[0] if how in ("queued", "lost") else ids[1])
    assert await worker.claim() == []
    await worker.end(again)
    if how in ("queued", "lost"):
        assert [one.id for one in await worker.claim()] == [ids[1]]


async def test_keys_are_per_tenant(shard: Shard) -> None:
    for tenant in ("acme", "bolt", "acme"):
        await shard.add(concurrency_key="k", tenant=tenant)
    worker = await shard.worker()
    assert [one.tenant for one in await worker.claim()] == ["acme", "bolt"]


async def test_a_woken_job_that_expires_wakes_the_next(shard: Shard) -> None:
    _, worker = await keyed(shard, 1)
    claimed = await worker.take()
    woken = await shard.add(concurrency_key="k", expires_in=5)
    other = await shard.add(concurrency_key="k")
    assert await worker.claim() == []
    await worker.end(claimed)
    assert [await shard.state(woken), await shard.state(other)] == [State.QUEUED, State.WAITING]
    await shard.wait(5)
    assert [await shard.state(woken), await shard.state(other)] == [State.FAILED, State.QUEUED]


async def test_a_woken_job_that_cannot_run_wakes_the_next(shard: Shard) -> None:
    ids = await shard.submit(
        job(concurrency_key="k"),
        job("u", concurrency_key="k"),
        job(concurrency_key="k", priority="low"),
    )
    both, worker = await shard.worker({"t": 1, "u": 1}), await shard.worker()
    claimed = await both.take()
    await both.end(claimed)
    assert [await shard.state(id) for id in ids[1:]] == [State.QUEUED, State.WAITING]
    # One claim parks the last job for the key, and brings it back when the other turns out not to
    # use the slot.
    assert [one.id for one in await worker.claim()] == [ids[2]]


async def test_a_job_parked_and_woken_in_one_claim_is_not_lost(shard: Shard) -> None:
    ids, worker = await keyed(shard, 2)
    await worker.claim(slots=1)
    unknown = await shard.add(task="u", concurrency_key="k", priority="low")
    # Parks ids[1] for the key, then `unknown` for its task, which looks for another job of the key.
    assert await worker.claim() == []
    assert [await shard.state(ids[1]), await shard.state(unknown)] == [State.WAITING] * 2
    await shard.silence()
    assert [one.id for one in await worker.claim()] == [ids[0]]


async def test_jobs_of_one_key_can_have_different_limits(shard: Shard) -> None:
    wide = await shard.submit(*(job(concurrency_key="k", concurrency_limit=3) for _ in range(3)))
    narrow = await shard.submit(*(job(concurrency_key="k", concurrency_limit=1) for _ in range(2)))
    worker = await shard.worker()
    order = []
    for _ in range(10):
        claimed = await worker.claim()
        order.append([one.id for one in claimed])
        for one in claimed:
            await worker.end(one)
    assert [ids for ids in order if ids] == [wide, narrow[:1], narrow[1:]]


async def test_a_parked_id_without_a_record_does_not_stop_the_waking(shard: Shard) -> None:
    ids, worker = await keyed(shard, 2)
    claimed = await worker.take()
    assert await worker.claim() == []
    await shard.redis.zadd(
        f"{shard.queue.prefix}park:limit:default:normal:key:default:k", {"nobody": 1}
    )
    await worker.end(claimed)
    assert (await worker.take()).id == ids[1]
