"""Claims: order, number and size of what a worker gets, and lost replies."""

import asyncio
from collections import Counter

import pytest

from tandem_shared.jobs.states import PRIORITIES, State
from tandem_shared.queue.messages import Claim
from tests.shared.queue.model.shard import Shard, job


async def test_a_claimed_job_runs(shard: Shard) -> None:
    id = await shard.add(payload=b'{"n": 1}', max_attempts=4, tenant="acme")
    worker = await shard.worker()
    await shard.turn(1)
    claimed = await worker.take()
    assert claimed.id == id
    assert claimed.token == f"{shard.us}.{worker.id}"
    assert (claimed.attempt, claimed.max_attempts, claimed.task, claimed.tenant) == (
        1,
        4,
        "t",
        "acme",
    )
    assert claimed.payload == b'{"n": 1}'
    assert b'"timeout":30' in claimed.options
    record = await shard.queue.get(id, tenant="acme")
    assert record is not None
    assert (record.state, record.attempt, record.began, record.stamp) == (
        State.RUNNING,
        1,
        shard.us,
        shard.us,
    )
    assert [attempt.worker for attempt in record.attempts] == [worker.id]
    assert (await shard.snapshot()).zsets["leases"] == {id: shard.ms + 10_000}
    assert await worker.claim() == []


async def test_an_unknown_worker_must_register_first(shard: Shard) -> None:
    await shard.add()
    worker = await shard.worker()
    await shard.queue.retire(worker.id)
    assert await worker.call() == Claim(False, False, False, None, 0, [])
    await worker.register()
    assert len(await worker.claim()) == 1


async def test_a_worker_without_a_catalogue_must_register_again(shard: Shard) -> None:
    worker = await shard.worker()
    await shard.redis.delete(f"{shard.queue.prefix}tasks:{worker.digest}")
    assert not (await worker.call()).registered
    assert not (await worker.beat())[0]
    await worker.register()
    assert (await worker.call()).registered


async def test_the_oldest_jobs_come_first(shard: Shard) -> None:
    ids = []
    for _ in range(5):
        await shard.turn(0.01)
        ids.append(await shard.add())
    early = await shard.add(delay=1)  # due after those, but before the next one
    await shard.turn(2)
    late = await shard.add()
    worker = await shard.worker()
    assert [one.id for one in await worker.claim(slots=3)] == ids[:3]
    assert [one.id for one in await worker.claim(slots=9)] == [*ids[3:], early, late]


@pytest.mark.parametrize("size", [1, 3, 16, 50])
async def test_no_priority_starves(shard: Shard, size: int) -> None:
    of: dict[str, str] = {}
    for priority in PRIORITIES:
        ids = await shard.submit(*(job(priority=priority) for _ in range(60)))
        of |= dict.fromkeys(ids, priority)
    workers = [await shard.worker(), await shard.worker()]  # the slots are counted per shard
    got: list[str] = []
    while len(got) < 48:
        got += [of[one.id] for one in await workers[len(got) % 2].claim(slots=size)]
    want = [
        "low" if slot % 16 == 0 else "normal" if slot % 4 == 0 else "high"
        for slot in range(1, 1 + len(got))
    ]
    assert got == want


async def test_a_lower_priority_fills_the_remaining_slots(shard: Shard) -> None:
    low = await shard.submit(*(job(priority="low") for _ in range(9)))
    high = await shard.submit(*(job(priority="high") for _ in range(3)))
    worker = await shard.worker()
    got = [one.id for one in await worker.claim(slots=10)]
    assert got[:3] == high
    assert got[3:] == low[:7]


@pytest.mark.parametrize("number", [2, 3, 4, 16])
async def test_queues_take_turns_at_every_priority(shard: Shard, number: int) -> None:
    queues = [f"q{n}" for n in range(number)]
    of: dict[str, tuple[str, str]] = {}
    for queue in queues:
        for priority in PRIORITIES:
            ids = await shard.submit(*(job(queue=queue, priority=priority) for _ in range(60)))
            of |= dict.fromkeys(ids, (queue, priority))
    worker = await shard.worker(queues=queues)
    for _ in range(8):
        await worker.claim(slots=2 * number)
    got = Counter(of[id] for id in worker.held)
    assert sum(got.values()) == 16 * number
    assert got == {
        (q, p): {"high": 12, "normal": 3, "low": 1}[p] for q in queues for p in PRIORITIES
    }


async def test_a_worker_gets_jobs_of_its_queues_only(shard: Shard) -> None:
    await shard.add(queue="mail")
    id = await shard.add(queue="web")
    worker = await shard.worker(queues=["web", "default"])
    assert [one.id for one in await worker.claim()] == [id]


async def test_a_claim_respects_its_slots(shard: Shard) -> None:
    await shard.submit(*(job() for _ in range(5)))
    worker = await shard.worker()
    first = await worker.call(slots=3)
    assert (len(first.jobs), first.more) == (3, True)
    second = await worker.call(slots=3)
    assert (len(second.jobs), second.more) == (2, False)


async def test_a_full_claim_reports_that_due_jobs_are_left(shard: Shard) -> None:
    await shard.add(priority="high")
    await shard.add(priority="low")
    worker = await shard.worker()
    assert (await worker.call(slots=1)).more
    assert not (await worker.call(slots=1)).more


async def test_a_claim_takes_at_most_500_jobs(shard: Shard) -> None:
    await shard.submit(*(job() for _ in range(600)))
    worker = await shard.worker()
    assert len(await worker.claim(slots=10_000)) == 500
    assert len(await worker.claim(slots=500)) == 100
    held = list(worker.held.items())
    assert await shard.queue.beat(worker.id, worker.digest, held[:500]) == (True, [], [])


async def test_a_claim_respects_its_byte_limit_but_takes_at_least_one_job(shard: Shard) -> None:
    sizes = [900, 90, 20, 5]
    ids = await shard.submit(*(job(payload=b'"%s"' % (b"x" * (size - 2))) for size in sizes))
    worker = await shard.worker()
    claim = await worker.call(max_bytes=100)
    assert ([one.id for one in claim.jobs], claim.more) == (ids[:1], True)
    claim = await worker.call(max_bytes=100)
    assert ([one.id for one in claim.jobs], claim.more) == (ids[1:2], True)
    claim = await worker.call(max_bytes=100)
    assert ([one.id for one in claim.jobs], claim.more) == (ids[2:], False)


async def test_a_repeated_claim_returns_the_same_jobs(shard: Shard) -> None:
    await shard.submit(*(job() for _ in range(6)))
    worker = await shard.worker()
    first = await worker.call(slots=3)
    again = await worker.call(slots=3, number=1)
    assert again.jobs == first.jobs
    assert again.more
    # Jobs that it has ended or lost are left out.
    await worker.end(first.jobs[0])
    await worker.end(first.jobs[1], State.QUEUED)
    assert (await worker.call(number=1)).jobs == first.jobs[2:]
    await shard.silence()
    assert (await worker.call(number=1)).jobs == []
    assert len(await worker.claim()) == 5


async def test_a_repeated_claim_omits_jobs_that_went_back(shard: Shard) -> None:
    id = await shard.add()
    worker, other = await shard.worker(), await shard.worker()
    await worker.end(await worker.take(), State.QUEUED)
    assert (await other.take()).id == id
    assert (await worker.call(number=1)).jobs == []


async def test_a_late_claim_takes_nothing(shard: Shard) -> None:
    worker = await shard.worker()
    assert (await worker.call(number=1)).jobs == []
    assert (await worker.call(number=2)).jobs == []
    await shard.add()
    assert await worker.call(number=1) == Claim(True, False, False, None, 0, [])
    assert len((await worker.call(number=3)).jobs) == 1


async def test_many_workers_share_the_jobs(shard: Shard) -> None:
    ids = await shard.submit(*(job() for _ in range(500)))
    workers = [await shard.worker() for _ in range(5)]

    async def work(worker: int) -> list[str]:
        got: list[str] = []
        while claimed := await workers[worker].claim(slots=7):
            got += [one.id for one in claimed]
        return got

    shares = await asyncio.gather(*(work(n) for n in range(5)))
    assert sorted(id for share in shares for id in share) == sorted(ids)


async def test_jobs_that_cannot_run_do_not_block_the_rest(shard: Shard) -> None:
    await shard.submit(*(job("u") for _ in range(201)))
    id = await shard.add()
    worker = await shard.worker()
    claim = await worker.call(slots=2)  # looks at no more than 200 jobs
    assert (claim.jobs, claim.more) == ([], True)
    assert [one.id for one in await worker.claim(slots=2)] == [id]


async def test_stale_members_of_places_are_dropped(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    await worker.end(await worker.take())
    prefix = shard.queue.prefix
    for key in (
        "q:default:normal",
        "suspects:default",
        "later:default:normal",
        "leases",
        "expiries",
    ):
        await shard.redis.zadd(f"{prefix}{key}", {id: 1, "nobody": 1})
    await shard.redis.sadd(f"{prefix}suspected", "default")
    await shard.redis.zadd(f"{prefix}agenda", {"default:normal": 1})
    assert await worker.claim() == []
    await shard.queue.tick()
    snapshot = await shard.snapshot()
    assert snapshot.place(id) == snapshot.place("nobody") == []


async def test_a_claim_returns_the_next_due_time(shard: Shard) -> None:
    worker = await shard.worker()
    assert (await worker.call()).next_due is None
    await shard.add(delay=30)
    await shard.add(delay=7.25)
    assert (await worker.call()).next_due == 7.25
