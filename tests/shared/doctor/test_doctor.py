"""The doctor on a shard: each invariant is broken by hand, found and fixed, and every job ends."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tandem_shared.doctor import doctor
from tandem_shared.doctor.doctor import Diagnosis
from tandem_shared.jobs.states import FINAL, State
from tandem_shared.queue.messages import Claimed, Report
from tandem_shared.queue.queue import Queue
from tandem_shared.queue.steps import Step
from tandem_worker.task import task
from tests.shared.queue.model.laws import broken
from tests.shared.queue.model.shard import Shard, Worker, job
from tests.worker.workers import open_client, working


async def examine(queue: Queue, *, pause: float = 0, fix: bool = False) -> Diagnosis:
    return await doctor.examine(doctor.queue_checks(queue.integrity), pause=pause, fix=fix)


class Broken:
    """A shard that is changed behind the queue's back."""

    def __init__(self, shard: Shard, worker: Worker) -> None:
        self.shard, self.worker, self.redis = shard, worker, shard.redis

    def key(self, name: str) -> str:
        return f"{self.shard.queue.prefix}{name}"

    async def add(self, **given: Any) -> str:
        return await self.shard.add(**given)

    async def run(self, **given: Any) -> Claimed:
        await self.add(**given)
        return await self.worker.take()

    async def field(self, id: str, **fields: str) -> None:
        await self.redis.hset(self.key(f"job:{id}"), mapping=fields)

    async def final(self, **given: Any) -> str:
        """A job that has ended, with output."""
        claimed = await self.run(**given)
        await self.shard.queue.report(
            [Report(claimed.id, claimed.token, 1, "output", b"1")], limit=100
        )
        await self.shard.queue.steps.keep(Step(claimed.id, claimed.token, "s", b"1"))
        await self.worker.end(claimed)
        return claimed.id


def lost_entry(key: str, **given: Any) -> Callable[[Broken], Awaitable[None]]:
    """A job that is not where it should wait."""

    async def lose(it: Broken) -> None:
        assert await it.redis.zrem(it.key(key), await it.add(**given))

    return lose


async def a_parked_job_missing_from_its_place(it: Broken) -> None:
    await it.shard.worker({"t": 2}, queues=["elsewhere"])
    id = await it.add(version=2)
    await it.worker.claim()
    await it.redis.zrem(it.key("park:task:default:2:t"), id)


async def a_running_job_without_its_lease(it: Broken) -> None:
    await it.redis.zrem(it.key("leases"), (await it.run()).id)


async def a_suspect_missing_from_its_place(it: Broken) -> None:
    id = await it.add(max_attempts=9)
    for _ in range(2):
        await it.worker.lose(id)
    assert await it.redis.zrem(it.key("suspects:default"), id)


async def entries_without_a_record(it: Broken) -> None:
    for name in (
        "q:default:normal",
        "later:default:normal",
        "leases",
        "suspects:default",
        "park:limit:default:normal:key:default:k",
        "park:task:default:2:t",
        "expiries",
    ):
        await it.redis.zadd(it.key(name), {"unknown": it.shard.ms + 100_000})
    await it.add(concurrency_key="k")
    await it.worker.take()


async def a_final_job_in_a_queue(it: Broken) -> None:
    await it.redis.zadd(it.key("q:default:high"), {await it.final(): 1})


async def a_running_job_in_a_queue(it: Broken) -> None:
    await it.redis.zadd(it.key("q:default:high"), {(await it.run()).id: 1})


async def a_job_at_the_wrong_time(it: Broken) -> None:
    await it.redis.zadd(it.key("later:default:normal"), {await it.add(delay=5.0): 1e15})


async def an_unfinished_record_with_expiry(it: Broken) -> None:
    await it.redis.expire(it.key(f"job:{await it.add()}"), 1000)


async def a_final_record_without_expiry(it: Broken) -> None:
    await it.redis.persist(it.key(f"job:{await it.final()}"))


async def keys_that_outlive_their_job(it: Broken) -> None:
    id = await it.final(idempotency_key="x")
    (idem,) = await it.redis.keys(it.key("idem:*"))
    for name in (it.key(f"out:{id}"), it.key(f"steps:{id}"), idem):
        assert await it.redis.persist(name)
    await it.redis.xadd(it.key("cold:unknown"), {"f": 1, "s": 1})


async def keys_that_expire_before_their_job(it: Broken) -> None:
    claimed = await it.run(idempotency_key="x")
    await it.shard.queue.report([Report(claimed.id, claimed.token, 1, "output", b"1")], limit=100)
    (idem,) = await it.redis.keys(it.key("idem:*"))
    for name in (it.key(f"out:{claimed.id}"), idem):
        await it.redis.expire(name, 1000)


async def a_silent_worker(it: Broken) -> None:
    await it.run()
    await it.shard.queue.retire(it.worker.id)
    it.worker.held.clear()
    it.worker = await it.shard.worker()


async def a_worker_without_expiry(it: Broken) -> None:
    await it.redis.persist(it.key(f"worker:{it.worker.id}"))


async def a_lease_of_a_day(it: Broken) -> None:
    await it.redis.zadd(it.key("leases"), {(await it.run()).id: it.shard.ms + 86_400_000})


async def a_slot_of_a_key_that_was_not_freed(it: Broken) -> None:
    await it.redis.sadd(it.key("slots:key:default:k"), f"unknown:1.{it.worker.id}")
    await it.add(concurrency_key="k")
    assert not await it.worker.claim()


async def a_slot_of_a_task_that_was_not_freed(it: Broken) -> None:
    it.worker = await it.shard.worker(concurrency=1)
    await it.redis.sadd(it.key("slots:task:t"), f"unknown:1.{it.worker.id}")
    await it.add()
    assert not await it.worker.claim()


async def a_lost_slot(it: Broken) -> None:
    await it.run(concurrency_key="k")
    await it.redis.delete(it.key("slots:key:default:k"))


async def a_key_without_holder(it: Broken) -> None:
    await it.run(concurrency_key="k")
    await it.add(concurrency_key="k")
    assert not await it.worker.claim()
    held = it.worker.held.popitem()
    await it.field(held[0], ck="other")
    await it.redis.rename(it.key("slots:key:default:k"), it.key("slots:key:default:other"))


async def a_parked_place_without_index(it: Broken) -> None:
    await it.shard.worker({"t": 2}, queues=["elsewhere"])
    await it.add(version=2)
    await it.worker.claim()
    await it.redis.delete(it.key("parked"), it.key("parked:default"))


async def suspects_without_index(it: Broken) -> None:
    id = await it.add(max_attempts=9)
    for _ in range(2):
        await it.worker.lose(id)
    await it.redis.delete(it.key("suspected"))


async def an_agenda_that_is_late(it: Broken) -> None:
    await it.add(delay=5.0)
    await it.redis.zadd(it.key("agenda"), {"default:normal": 1e15})


async def an_agenda_that_is_empty(it: Broken) -> None:
    await it.add(delay=5.0)
    await it.redis.delete(it.key("agenda"))


async def a_lock_that_nobody_holds(it: Broken) -> None:
    claimed = await it.run()
    await it.field(claimed.id, lk="1 l\n")
    await it.redis.zadd(it.key("waits:default:l"), {f"{claimed.id} {claimed.token} 1": 1})


async def an_unwatched_limit(it: Broken) -> None:
    it.worker = await it.shard.worker(rate="1/5s")
    await it.run()
    await it.add()
    assert not await it.worker.claim()
    await it.redis.delete(it.key("gates"), it.key("limited:task:t"))


async def a_removed_limit(it: Broken) -> None:
    it.worker = await it.shard.worker(concurrency=1)
    await it.run()
    for _ in range(3):
        await it.add()
    assert not await it.worker.claim()
    await it.redis.delete(
        it.key("limit:task:t"), it.key("limited:task:t"), it.key("gates"), it.key("slots:task:t")
    )
    for id in it.worker.held:
        await it.redis.hdel(it.key(f"job:{id}"), "slot")


async def a_lock_of_an_attempt_that_ended(it: Broken) -> None:
    claimed = await it.run()
    holder = f"unknown 1.{it.worker.id} 1"
    await it.redis.hset(it.key("lock:default:l"), mapping={"holder": holder, "fence": 1})
    await it.redis.zadd(
        it.key("waits:default:l"),
        {f"{claimed.id} {claimed.token} 1": 1, f"unknown 2.{it.worker.id} 1": 2},
    )
    await it.field(claimed.id, lk="1 l\n")


async def a_lost_lock(it: Broken) -> None:
    await it.field((await it.run()).id, lk="1 l\n")


async def locks_of_a_waiting_job(it: Broken) -> None:
    await it.field(await it.add(), lk="1 l\n")


async def wrong_counts(it: Broken) -> None:
    await it.add()
    await it.add(delay=5.0)
    await it.redis.hincrby(it.key("counts"), "default queued", 5)
    await it.redis.hdel(it.key("counts"), "default scheduled")
    await it.redis.hincrby(it.key("counts"), "ghost running", 2)


async def time_that_stopped(it: Broken) -> None:
    await it.add(delay=5.0)
    await it.shard.turn(500)


CASES: dict[Callable[[Broken], Awaitable[None]], set[str]] = {
    lost_entry("q:default:normal"): {"entry-missing", "counts-differ"},
    lost_entry("later:default:normal", delay=5.0): {"entry-missing", "counts-differ"},
    lost_entry("expiries", expires_in=20.0, delay=99.0): {"entry-missing"},
    a_parked_job_missing_from_its_place: {"entry-missing", "counts-differ"},
    a_running_job_without_its_lease: {"entry-missing", "counts-differ"},
    a_suspect_missing_from_its_place: {"entry-missing", "counts-differ"},
    entries_without_a_record: {"entry-misplaced", "entry-missing", "limit-gone"},
    a_final_job_in_a_queue: {"entry-misplaced"},
    a_running_job_in_a_queue: {"entry-misplaced"},
    a_job_at_the_wrong_time: {"entry-at-wrong-time"},
    a_lease_of_a_day: {"entry-at-wrong-time"},
    an_agenda_that_is_late: {"entry-at-wrong-time"},
    an_agenda_that_is_empty: {"entry-missing"},
    a_parked_place_without_index: {"entry-missing"},
    suspects_without_index: {"entry-missing"},
    an_unwatched_limit: {"entry-missing"},
    a_key_without_holder: {"entry-missing"},
    a_lost_slot: {"entry-missing"},
    a_slot_of_a_key_that_was_not_freed: {"entry-misplaced"},
    a_slot_of_a_task_that_was_not_freed: {"entry-misplaced"},
    a_removed_limit: {"entry-missing", "limit-gone"},
    a_lock_of_an_attempt_that_ended: {"lock-stays", "entry-misplaced"},
    a_lock_that_nobody_holds: {"lock-stays"},
    a_lost_lock: {"entry-missing"},
    locks_of_a_waiting_job: {"locks-stay"},
    an_unfinished_record_with_expiry: {"kin-expires"},
    a_final_record_without_expiry: {"final-stays"},
    keys_that_outlive_their_job: {"kin-stays"},
    keys_that_expire_before_their_job: {"kin-expires"},
    a_worker_without_expiry: {"kin-stays"},
    a_silent_worker: {"worker-gone"},
    wrong_counts: {"counts-differ"},
    time_that_stopped: {"time-stands"},
}


async def end_all(shard: Shard) -> None:
    """Given time and a worker that knows all tasks, every job ends."""
    await shard.silence()
    worker = await shard.worker({"t": 2})
    for _ in range(40):
        for one in await worker.claim(50):
            assert await worker.end(one) == "ok"
        if all(
            State(record["state"]) in FINAL for record in (await shard.snapshot()).jobs.values()
        ):
            return
        await shard.wait(3)
    raise AssertionError(f"never final: {(await shard.snapshot()).zsets}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_a_broken_invariant_is_found_and_fixed(
    shard: Shard, case: Callable[[Broken], Awaitable[None]]
) -> None:
    assert not (await examine(shard.queue)).findings
    it = Broken(shard, await shard.worker())
    await case(it)
    found = await examine(shard.queue)
    assert {one.code for one in found.findings} == CASES[case], found.findings
    assert found.exit_code == 1
    views = [one.view() for one in found.findings]
    assert all(one["says"] and one["fix"] and not one["mended"] for one in views)
    again = await examine(shard.queue)
    assert again.findings == found.findings, "an examination changed something"

    fixed = await examine(shard.queue, fix=True)
    assert {one.code for one in fixed.findings} >= {one.code for one in found.findings} - {
        "counts-differ"
    }
    assert all(one.fixed for one in fixed.findings), fixed.findings
    healthy = await examine(shard.queue)
    assert (healthy.findings, healthy.exit_code) == ([], 0)
    assert not broken(await shard.snapshot())
    await end_all(shard)
    assert not (await examine(shard.queue)).findings


async def test_a_record_without_required_fields_is_reported_and_left_alone(shard: Shard) -> None:
    id = await shard.add()
    key = f"{shard.queue.prefix}job:{id}"
    due = await shard.redis.hget(key, "due")
    await shard.redis.hdel(key, "due")
    found = (await examine(shard.queue, fix=True)).findings
    assert [(one.code, one.subject, one.fixed) for one in found] == [("record-broken", id, False)]
    await shard.redis.hset(key, "due", due)


async def test_many_jobs_of_a_limit_that_is_gone(shard: Shard) -> None:
    worker = await shard.worker(concurrency=1)
    await shard.submit(*(job() for _ in range(1300)))
    await worker.claim(1)
    while (await shard.snapshot()).counts.get("default queued"):
        await worker.call(slots=400)
    key = shard.queue.prefix
    await shard.redis.delete(f"{key}limit:task:t", f"{key}limited:task:t", f"{key}gates")
    assert {one.code for one in (await examine(shard.queue)).findings} == {
        "entry-missing",
        "limit-gone",
    }
    assert all(one.fixed for one in (await examine(shard.queue, fix=True)).findings)
    assert not (await examine(shard.queue)).findings


@task("quick")
async def quick() -> None:
    await asyncio.sleep(0)


@task("keyed", concurrency=3)
async def keyed() -> None:
    await asyncio.sleep(0.002)


async def test_a_system_under_load_causes_no_false_alarm(
    redis: Redis, redis_url: str, tmp_path: Path
) -> None:
    assert await redis.dbsize() == 0

    async def submit(queue: Queue) -> int:
        number = 0
        for _ in range(25):
            jobs = [
                job(
                    "keyed" if n % 10 == 0 else "quick",
                    queue=("default", "other")[n % 2],
                    delay=0.2 if n % 7 == 0 else None,
                    concurrency_key=f"k{n % 5}" if n % 5 == 0 else None,
                    expires_in=60.0 if n % 3 else None,
                )
                for n in range(80)
            ]
            number += len(await queue.submit_many(jobs))
        return number

    async with (
        open_client(redis_url) as client,
        working(redis_url, tmp_path, quick, keyed, queues=("default", "other")),
    ):
        submitting = asyncio.create_task(submit(client.queue))
        looks = 0
        while not submitting.done() or any(
            one.queued + one.scheduled + one.waiting + one.running
            for one in await client.queue.stats()
        ):
            found = await examine(client.queue, pause=0.05)
            looks += 1
            assert not found.findings, found.findings
        assert (await submitting, looks > 1) == (2000, True)
