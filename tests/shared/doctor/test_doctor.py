"""The doctor on a shard: each invariant is broken by hand, found and fixed, and every job ends."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tandem_shared.doctor import doctor
from tandem_shared.doctor.doctor import Diagnosis
from tandem_shared.jobs.states import FINAL, State
from tandem_shared.queue.messages import Finish, Report
from tandem_shared.queue.queue import Queue
from tandem_shared.queue.steps import Step
from tandem_worker.task import task
from tests.shared.queue.model.laws import broken
from tests.shared.queue.model.shard import Shard, Worker, job
from tests.worker.workers import open_client, working


async def examine(queue: Queue, *, pause: float = 0, fix: bool = False) -> Diagnosis:
    return await doctor.examine(doctor.queue_checks(queue.integrity), pause=pause, fix=fix)


class Broken:
    """A shard that is changed behind the queue's back; `id` and `token` are those of its job."""

    def __init__(self, shard: Shard, worker: Worker) -> None:
        self.shard, self.worker, self.redis = shard, worker, shard.redis
        self.id, self.token = "unknown", "1.w1"

    async def command(self, name: str, key: str, *args: str | int) -> None:
        """Sends a command; in its words, <id>, <token>, <idem>, <far> and <key> are replaced."""
        prefix = self.shard.queue.prefix
        idem = await self.redis.hget(f"{prefix}job:{self.id}", "idem")
        words = [f"{prefix}{key}", *map(str, args)]
        for name_of, value in {
            "<id>": self.id,
            "<token>": self.token,
            "<idem>": f"idem:{(idem or b'').decode()}",
            "<far>": str(self.shard.ms + 86_400_000),
            "<key>": words[0],
        }.items():
            words = [word.replace(name_of, value) for word in words]
        assert await self.redis.execute_command(name, *words) is not None


Setup = Callable[[Broken], Awaitable[None]]


def nothing() -> Setup:
    """No job."""

    async def setup(it: Broken) -> None: ...

    return setup


def added(**given: Any) -> Setup:
    """A job that waits."""

    async def setup(it: Broken) -> None:
        it.id = await it.shard.add(**given)

    return setup


def running(**given: Any) -> Setup:
    """A running job, with output."""

    async def setup(it: Broken) -> None:
        await it.shard.add(**given)
        claimed = await it.worker.take()
        it.id, it.token = claimed.id, claimed.token
        await it.shard.report(Report(it.id, it.token, 1, "output", b"1"))
        await it.shard.queue.steps.keep(Step(it.id, it.token, "s", b"1"))

    return setup


def final(**given: Any) -> Setup:
    """A job that has ended, with output."""

    async def setup(it: Broken) -> None:
        await running(**given)(it)
        await it.shard.queue.finish([Finish(it.id, it.token, State.SUCCEEDED, "succeeded", b"1")])

    return setup


def parked() -> Setup:
    """A job of a version that its queue's workers lack."""

    async def setup(it: Broken) -> None:
        await it.shard.worker({"t": 2}, queues=["elsewhere"])
        it.id = await it.shard.add(version=2)
        await it.worker.claim()

    return setup


def limited(*, key: str | None = None, first: bool = True, **limits: Any) -> Setup:
    """Jobs that wait for a limit under which the `first` runs."""

    async def setup(it: Broken) -> None:
        it.worker = await it.shard.worker(**limits)
        if first:
            await running(concurrency_key=key)(it)
        else:
            name = f"key:default:{key}" if key else "task:t"
            await it.command("SADD", f"slots:{name}", f"unknown:{it.token}")
        for _ in range(3):
            await it.shard.add(concurrency_key=key)
        assert not await it.worker.claim()

    return setup


def suspect() -> Setup:
    """A job during which two workers were lost."""

    async def setup(it: Broken) -> None:
        it.id = await it.shard.add(max_attempts=9)
        for _ in range(2):
            await it.worker.lose(it.id)

    return setup


def of_silent_worker() -> Setup:
    """A job whose worker is gone."""

    async def setup(it: Broken) -> None:
        await running()(it)
        await it.shard.queue.retire(it.worker.id)
        it.worker = await it.shard.worker()

    return setup


def overdue() -> Setup:
    """A job that nobody has looked at for minutes."""

    async def setup(it: Broken) -> None:
        await it.shard.add(delay=5.0)
        await it.shard.turn(500)

    return setup


Command = tuple[str | int, ...]
MISSING, LOST = {"entry-missing"}, {"entry-missing", "counts-differ"}
MISPLACED, MISTIMED = {"entry-misplaced"}, {"entry-at-wrong-time"}
LATER, KEY = "later:default:normal", "slots:key:default:k"
# What there is, what happens to it, and what is found.
CASES: list[tuple[Setup, Sequence[Command], set[str]]] = [
    (added(), [("ZREM", "q:default:normal", "<id>")], LOST),
    (added(delay=5.0), [("ZREM", LATER, "<id>")], LOST),
    (parked(), [("ZREM", "park:task:default:2:t", "<id>")], LOST),
    (running(), [("ZREM", "leases", "<id>")], LOST),
    (suspect(), [("ZREM", "suspects:default", "<id>")], LOST),
    (added(expires_in=20.0, delay=99.0), [("ZREM", "expiries", "<id>")], MISSING),
    (added(delay=5.0), [("DEL", "agenda")], MISSING),
    (suspect(), [("DEL", "suspected")], MISSING),
    (parked(), [("DEL", "parked:default")], MISSING),
    (parked(), [("DEL", "parked")], MISSING),
    (limited(rate="1/5s"), [("DEL", "gates"), ("DEL", "limited:task:t")], MISSING),
    (limited(key="k"), [("HSET", "job:<id>", "ck", "k2"), ("RENAME", KEY, "<key>2")], MISSING),
    (running(concurrency_key="k"), [("DEL", KEY)], MISSING),
    (running(), [("HSET", "job:<id>", "lk", "1 l\n")], MISSING),
    *(
        (nothing(), [("ZADD", place, "<far>", "unknown")], MISPLACED)
        for place in ("q:default:normal", "leases", "expiries")
    ),
    *(
        (nothing(), [("ZADD", place, "<far>", "unknown")], MISPLACED | MISSING)
        for place in (LATER, "suspects:default", "park:task:default:2:t")
    ),
    (
        nothing(),
        [("ZADD", "park:limit:default:normal:key:default:k", "<far>", "unknown")],
        MISPLACED | MISSING | {"limit-gone"},
    ),
    (final(), [("ZADD", "q:default:high", 1, "<id>")], MISPLACED),
    (running(), [("ZADD", "q:default:high", 1, "<id>")], MISPLACED),
    (limited(key="k", first=False), [], MISPLACED),
    (limited(concurrency=1, first=False), [], MISPLACED),
    (added(delay=5.0), [("ZADD", LATER, "XX", "CH", 10**15, "<id>")], MISTIMED),
    (added(delay=5.0), [("ZADD", "agenda", "XX", "CH", 10**15, "default:normal")], MISTIMED),
    (running(), [("ZADD", "leases", "XX", "CH", "<far>", "<id>")], MISTIMED),
    (
        limited(concurrency=1),
        [
            *(("DEL", key) for key in ("limit:task:t", "limited:task:t", "slots:task:t")),
            ("HDEL", "job:<id>", "slot"),
        ],
        MISSING | {"limit-gone"},
    ),
    (
        running(),
        [
            ("HSET", "lock:default:l", "holder", "unknown 1.w1 1", "fence", 1),
            ("ZADD", "waits:default:l", 1, "<id> <token> 1", 2, "unknown 2.w1 1"),
            ("HSET", "job:<id>", "lk", "1 l\n"),
        ],
        MISPLACED | {"lock-stays"},
    ),
    (
        running(),
        [
            ("ZADD", "waits:default:l", 1, "<id> <token> 1"),
            ("HSET", "job:<id>", "lk", "1 l\n"),
        ],
        {"lock-stays"},
    ),
    (added(), [("HSET", "job:<id>", "lk", "1 l\n")], {"locks-stay"}),
    (added(idempotency_key="x"), [("PEXPIRE", "job:<id>", 10**6)], {"kin-expires"}),
    (running(), [("PEXPIRE", "out:<id>", 10**6)], {"kin-expires"}),
    (running(idempotency_key="x"), [("PEXPIRE", "<idem>", 10**6)], {"kin-expires"}),
    (final(), [("PERSIST", "out:<id>"), ("PERSIST", "steps:<id>")], {"kin-stays"}),
    (final(idempotency_key="x"), [("PERSIST", "<idem>")], {"kin-stays"}),
    (nothing(), [("XADD", "cold:unknown", "*", "f", 1, "s", 1)], {"kin-stays"}),
    (nothing(), [("PERSIST", "worker:w1")], {"kin-stays"}),
    (final(), [("PERSIST", "job:<id>")], {"final-stays"}),
    (of_silent_worker(), [], {"worker-gone"}),
    (overdue(), [], {"time-stands"}),
    (added(), [("HINCRBY", "counts", "default queued", 5)], {"counts-differ"}),
    (added(delay=5.0), [("HDEL", "counts", "default scheduled")], {"counts-differ"}),
    (nothing(), [("HINCRBY", "counts", "ghost running", 2)], {"counts-differ"}),
]


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


@pytest.mark.parametrize(("setup", "commands", "expected"), CASES)
async def test_what_is_broken_is_found_and_fixed(
    shard: Shard, setup: Setup, commands: Sequence[Command], expected: set[str]
) -> None:
    it = Broken(shard, await shard.worker())
    await setup(it)
    if commands:
        assert not (await examine(shard.queue)).findings
    for name, key, *args in commands:
        await it.command(str(name), str(key), *args)
    found = await examine(shard.queue)
    assert {one.code for one in found.findings} == expected, found.findings
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
