"""`job.lock`: one holder at a time, in the three kinds of code, with and without Redis."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tandem_shared.errors import Unavailable
from tandem_shared.jobs.states import State
from tandem_shared.queue.locks import Acquisition
from tandem_shared.queue.queue import Queue
from tandem_shared.retry_policy import RetryPolicy
from tandem_worker import task
from tandem_worker.errors import Permanent, TaskError
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.locks import LocalLocks
from tandem_worker.runtime.attempt_store import MAX_LOCKS
from tandem_worker.testing import run
from tests.conftest import eventually
from tests.shared.queue.model.rollback import copy_keys, roll_back
from tests.worker.jobs import lock_tasks
from tests.worker.jobs.lock_tasks import Door
from tests.worker.workers import Client, outcomes, working

ONCE = RetryPolicy(max_attempts=1)
LONG = 60.0  # seconds of a lease that outlasts the test even on a slow machine
KINDS = (lock_tasks.asynchronous, lock_tasks.plain, lock_tasks.cpu)


async def holder_of(client: Client, name: str = "door") -> str | None:
    """The job that holds the lock."""
    found = await client.redis.hget(f"{client.queue.prefix}lock:default:{name}", "holder")
    return found.split()[0].decode() if found else None


async def waiting(client: Client, name: str = "door") -> int:
    return int(await client.redis.zcard(f"{client.queue.prefix}waits:default:{name}"))


async def test_one_holder_at_a_time_without_redis(tmp_path: Path) -> None:
    door, locks = Door(notes=tmp_path / "notes", holds=0.01), LocalLocks()
    fences = await asyncio.gather(
        *(run(kind, door, locks=locks) for kind in KINDS for _ in range(2))
    )
    assert door.fences() == sorted(fences) == [1, 2, 3, 4, 5, 6]


async def test_the_wait_for_a_lock_ends_without_redis(tmp_path: Path) -> None:
    locks = LocalLocks()
    number, _ = await locks.acquire("door", 0)
    for kind in KINDS:
        with pytest.raises(TaskError, match="the lock 'door' was not free within 0 s") as refused:
            await run(kind, Door(notes=tmp_path / "notes", wait=0), locks=locks)
        assert (refused.value.type, refused.value.retryable) == ("lock_timeout", True)
    await locks.release(number)
    assert (
        await run(lock_tasks.asynchronous, Door(notes=tmp_path / "notes", wait=0), locks=locks) == 2
    )


async def test_invalid_locks_are_rejected() -> None:
    @task("t")
    async def wrong(job: Job) -> None:
        for name in ("", "n" * 201, "two\nlines"):
            with pytest.raises(ValueError, match="1 to 200 printable characters"):
                job.lock(name)
        with pytest.raises(TypeError, match="the name of a lock is a string"):
            job.lock(b"door")  # type: ignore[arg-type] # the mistake itself
        with pytest.raises(ValueError, match="is not a duration"):
            job.lock("door", wait="long")
        async with job.lock("door") as lock:
            with pytest.raises(RuntimeError, match=r"call job\.lock for each"):
                await lock.__aenter__()

    await run(wrong)


async def test_one_holder_at_a_time_with_growing_fences(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    door = Door(notes=tmp_path / "notes", holds=0.002)
    async with (
        working(redis_url, tmp_path, *KINDS, lease=LONG),
        working(redis_url, tmp_path, *KINDS, lease=LONG, concurrency=5),
    ):
        ids = [await client.submit(kind, door) for _ in range(8) for kind in KINDS]
        fences = [await client.result(id) for id in ids]
    assert door.fences() == sorted(set(fences))
    assert len(fences) == 24
    assert not await client.redis.keys(f"{client.queue.prefix}lock:*")


@pytest.mark.parametrize("kind", KINDS)
async def test_the_wait_for_a_lock_ends_with_a_retryable_error(
    kind: Callable[..., Any], client: Client, redis_url: str, tmp_path: Path
) -> None:
    go = asyncio.Event()

    @task("holds")
    async def holds(job: Job) -> None:
        async with job.lock("door"):
            await go.wait()

    async with working(redis_url, tmp_path, holds, kind, lease=LONG):
        first = await client.submit(holds)
        await eventually(lambda: holder_of(client))
        door = Door(notes=tmp_path / "notes", wait=0.05)
        id = await client.submit(kind, door, retry={"max_attempts": 2, "base": 0.001})
        error = await client.error(id)
        assert (error["type"], error["retryable"], error["attempt"]) == ("lock_timeout", True, 2)
        assert error["message"] == "the lock 'door' was not free within 0.05 s"
        await eventually(lambda: is_zero(client))
        go.set()
        await client.result(first)
        assert await client.result(await client.submit(kind, door))


async def is_zero(client: Client) -> bool:
    return await waiting(client) == 0


@pytest.mark.parametrize("way", ["cancel", "timeout", "fail"])
async def test_the_next_job_gets_the_lock_however_its_holder_ends(
    way: str, client: Client, redis_url: str, tmp_path: Path
) -> None:
    @task("holds", retry=ONCE)
    async def holds(job: Job) -> None:
        # Ends without releasing it, like code outside a `with`.
        await job.lock("door").__aenter__()
        while way != "fail" or not await waiting(client):
            await asyncio.sleep(0.005)
        raise LookupError

    async with working(redis_url, tmp_path, holds, lock_tasks.asynchronous, lease=LONG):
        first = await client.submit(holds, timeout=0.5 if way == "timeout" else 30)
        await eventually(lambda: holder_of(client))
        second = await client.submit(lock_tasks.asynchronous, Door(notes=tmp_path / "notes"))
        if way == "cancel":
            await eventually(lambda: waiting(client))
            await client.queue.cancel(first)
        assert await client.result(second)
        assert (await client.end(first)).state is (
            State.CANCELLED if way == "cancel" else State.FAILED
        )


async def test_code_under_a_lost_lock_is_cancelled(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    cancelled: list[int] = []

    @task("holds")
    async def holds(job: Job) -> int:
        async with job.lock("door") as lock:
            if job.attempt == 1:
                try:
                    await asyncio.Event().wait()
                finally:
                    cancelled.append(lock.fence)
            return lock.fence

    async with working(redis_url, tmp_path, holds, concurrency=1) as worker:
        id = await client.submit(holds)
        await eventually(lambda: holder_of(client))
        held = dict(worker.control.heartbeat.held)
        # As if the process had been suspended; without a free slot it claims nothing.
        worker.control.heartbeat.held.clear()
        await eventually(client.queue.tick)
        worker.control.heartbeat.held.update(held)
        fence = await client.result(id)
        assert cancelled
        assert fence > cancelled[0]
        assert outcomes(await client.record(id)) == ["worker_lost", "succeeded"]


async def test_releasing_a_lost_lock_is_an_error(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    errors: list[str] = []
    begun, go = asyncio.Event(), asyncio.Event()

    @task("holds")
    async def holds(job: Job) -> None:
        if job.attempt > 1:
            return
        try:
            async with job.lock("door"):
                begun.set()
                await go.wait()
        except TaskError as error:
            errors.append(error.type)
            raise

    async with working(redis_url, tmp_path, holds, lease=LONG, concurrency=1) as worker:
        id = await client.submit(holds)
        await asyncio.wait_for(begun.wait(), 10)
        # The lease ends now, and no heartbeat reports it.
        await client.redis.zadd(f"{client.queue.prefix}leases", {id: 1})
        await client.redis.hset(f"{client.queue.prefix}clock", mapping={"grace": 0})
        await eventually(client.queue.tick)
        go.set()
        await eventually(lambda: errors)
        assert errors == ["lock_lost"]
        assert (await client.end(id)).state is State.SUCCEEDED
        assert worker.jobs_failed == 0


async def test_code_under_a_lock_that_redis_has_forgotten_is_handed_back(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    begun: list[int] = []
    cancelled: list[int] = []
    claimed, lock_now, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @task("holds", retry=ONCE)
    async def holds(job: Job) -> int:
        begun.append(job.attempt)
        claimed.set()
        await lock_now.wait()
        async with job.lock("door") as lock:
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                cancelled.append(lock.fence)
                go_on.set()
                raise
            return lock.fence

    async with working(redis_url, tmp_path, holds, lease=LONG) as worker:
        id = await client.submit(holds)
        await claimed.wait()
        copy = await copy_keys(client.redis, client.queue.prefix)
        lock_now.set()
        await eventually(lambda: holder_of(client))
        await roll_back(client.redis, client.queue.prefix, copy)
        worker.queue.repeats.start()
        fence = await client.result(id)
        assert [fence > lost for lost in cancelled] == [True]
        assert begun == [1, 1]
        assert outcomes(await client.record(id)) == ["released", "succeeded"]


async def test_acquisitions_within_one_job_wait_for_each_other(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    @task("several")
    async def several(job: Job) -> list[int]:
        inside: list[int] = []

        async def one() -> int:
            async with job.lock("door") as lock:
                inside.append(1)
                assert len(inside) == 1
                await asyncio.sleep(0.001)
                inside.clear()
                return lock.fence

        async with job.lock("other"):
            with pytest.raises(TaskError, match="not free"):  # not reentrant
                await job.lock("other", wait=0.01).__aenter__()
        return await asyncio.gather(*(one() for _ in range(10)))

    async with working(redis_url, tmp_path, several, lease=LONG):
        fences = await client.result(await client.submit(several))
    assert len(set(fences)) == 10


async def test_the_number_of_locks_of_a_job_is_limited(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    @task("greedy")
    async def greedy(job: Job) -> str:
        locks = [job.lock(f"lock {number}") for number in range(MAX_LOCKS + 1)]
        for lock in locks[:-1]:
            await lock.__aenter__()
        with pytest.raises(Permanent, match="100 locks"):
            await locks[-1].__aenter__()
        await locks[0].__aexit__(None, None, None)
        async with job.lock("one more"):
            return "ok"

    async with working(redis_url, tmp_path, greedy, lease=LONG):
        assert await client.result(await client.submit(greedy)) == "ok"


async def test_an_abandoned_wait_never_gets_the_lock(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    go = asyncio.Event()

    @task("impatient")
    async def impatient(job: Job) -> int:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), job.lock("door"):
                raise AssertionError("another job holds it")
        await eventually(lambda: is_zero(client))
        go.set()
        async with job.lock("door") as lock:
            return lock.fence

    @task("holds")
    async def holds(job: Job) -> None:
        async with job.lock("door"):
            await go.wait()

    async with working(redis_url, tmp_path, impatient, holds, lease=LONG):
        await client.submit(holds)
        await eventually(lambda: holder_of(client))
        assert await client.result(await client.submit(impatient))


async def test_redis_may_fail_while_a_lock_is_acquired_and_released(
    client: Client, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @task("holds")
    async def holds(job: Job) -> None:
        async with job.lock("door"):
            pass

    async with working(redis_url, tmp_path, holds, lease=LONG) as worker:
        run, left = worker.queue._scripts.run, {"lock": 3, "unlock": 3}

        async def flaky(name: str, *args: Any) -> Any:
            if left.get(name):
                left[name] -= 1
                if name == "unlock":
                    await run(name, *args)  # its answer is lost
                raise Unavailable("away")
            return await run(name, *args)

        monkeypatch.setattr(worker.queue._scripts, "run", flaky)
        id = await client.submit(holds)
        assert (await client.end(id)).state is State.SUCCEEDED
        assert outcomes(await client.record(id)) == ["succeeded"]
        assert left == {"lock": 0, "unlock": 0}
        assert await holder_of(client) is None


async def test_the_queue_rejects_an_attempt_without_a_job(client: Client) -> None:
    queue: Queue = client.queue
    nobody = Acquisition("J", "1.w", 1, "door")
    assert await queue.locks.acquire(nobody) is None
    assert await queue.locks.release(nobody) is False
    assert await holder_of(client) is None
