"""Doorbells: which events wake which workers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tandem_shared.errors import Unavailable
from tandem_shared.jobs.states import State
from tandem_shared.queue.bells import Bells
from tandem_shared.queue.connections import connect
from tandem_shared.queue.scripts import execute
from tests.conftest import eventually
from tests.shared.queue.model.shard import Shard, job


@contextlib.asynccontextmanager
async def listening(shard: Shard, *names: str) -> AsyncIterator[Bells]:
    bells = shard.queue.bells(*names)
    try:
        yield bells
    finally:
        await bells.close()


async def rung(shard: Shard, name: str = "default") -> list[str]:
    """The words rung since the last call."""
    key = f"{shard.queue.prefix}bell:{name}"
    words = [word.decode() for word in await shard.redis.lrange(key, 0, -1)]
    await shard.redis.delete(key)
    return words


async def asleep(shard: Shard, number: int = 1) -> None:
    """Returns once this many connections block."""

    async def blocked() -> bool:
        return bool((await shard.redis.info("clients"))["blocked_clients"] == number)

    await eventually(blocked)


async def test_a_submission_wakes_a_sleeper(shard: Shard) -> None:
    async with listening(shard, "mail", "default") as bells:
        wait = asyncio.create_task(bells.wait(5))
        await asleep(shard)
        await shard.add()
        assert await wait == "1"
        assert await bells.wait(0.01) is None
        await shard.add(queue="mail")
        assert await bells.wait(5) == "1"


async def test_only_one_sleeper_is_woken(shard: Shard) -> None:
    async with listening(shard, "default") as one, listening(shard, "default") as two:
        waits = [asyncio.create_task(bells.wait(1)) for bells in (one, two)]
        await asleep(shard, 2)
        await shard.submit(*(job() for _ in range(5)))
        assert sorted(str(word) for word in await asyncio.gather(*waits)) == ["1", "None"]


async def test_a_bell_holds_one_word_however_often_it_is_rung(shard: Shard) -> None:
    for _ in range(3):
        await shard.add()
    assert await rung(shard) == ["1"]


async def test_a_claim_that_leaves_due_jobs_rings_again(shard: Shard) -> None:
    await shard.add(priority="high")
    await shard.add(priority="low")
    worker = await shard.worker()
    assert await rung(shard) == ["1"]
    await worker.claim(slots=1)
    assert await rung(shard) == ["1"]
    await worker.claim(slots=1)
    assert await rung(shard) == []


async def test_a_claim_rings_the_queue_whose_jobs_are_left(shard: Shard) -> None:
    for queue in ("a", "b", "b"):
        await shard.add(queue=queue)
    worker = await shard.worker(queues=["a", "b"])
    await rung(shard, "a")
    await rung(shard, "b")
    await worker.claim(slots=2)
    left = [await rung(shard, "a"), await rung(shard, "b")]
    assert sorted(left) == [[], ["1"]]


async def test_a_scheduled_job_rings_only_if_it_is_the_next_one_due(shard: Shard) -> None:
    words = []
    for delay in (60, 90, 30):
        await shard.add(delay=delay)
        words.append(await rung(shard))
    assert words == [["1"], [], ["1"]]


async def test_a_job_that_falls_due_rings(shard: Shard) -> None:
    await shard.add(delay=1)
    await rung(shard)
    await shard.turn(1)
    await shard.queue.tick()
    assert await rung(shard) == ["1"]


@pytest.mark.parametrize("to", [State.QUEUED, State.RETRYING])
async def test_a_job_that_comes_back_rings(shard: Shard, to: State) -> None:
    await shard.add()
    worker = await shard.worker()
    claimed = await worker.take()
    await rung(shard)
    await worker.end(claimed, to, body=b"{}", delay=1)
    assert await rung(shard) == ["1"]


async def test_losing_a_worker_rings_for_its_jobs(shard: Shard) -> None:
    id = await shard.add()
    await rung(shard)
    await (await shard.worker()).lose(id)
    assert await rung(shard) == ["1"]


async def test_a_freed_slot_of_a_concurrency_key_rings(shard: Shard) -> None:
    await shard.submit(*(job(concurrency_key="k", queue=queue) for queue in ("a", "b")))
    worker, other = await shard.worker(queues=["a"]), await shard.worker(queues=["b"])
    claimed = await worker.take()
    await other.claim()
    await rung(shard, "b")
    await worker.end(claimed)
    assert await rung(shard, "b") == ["1"]


async def test_a_worker_that_can_run_a_parked_job_is_woken(shard: Shard) -> None:
    knowing = await shard.worker({"u": 2})
    old = await shard.worker({"u": 1})
    elsewhere = await shard.worker({"u": 2}, queues=["mail"])
    ignorant = await shard.worker()
    await shard.submit(*(job("u", version=2) for _ in range(3)))
    await ignorant.claim()
    words = {one.id: await rung(shard, one.id) for one in (knowing, old, elsewhere, ignorant)}
    assert words == {knowing.id: ["wake"], old.id: [], elsewhere.id: [], ignorant.id: []}
    assert len(await knowing.claim()) == 3


async def test_a_draining_worker_is_not_woken(shard: Shard) -> None:
    draining = await shard.worker({"u": 1})
    await shard.queue.beat(draining.id, draining.digest, [], draining=True)
    await shard.add(task="u")
    await (await shard.worker()).claim()
    assert await rung(shard, draining.id) == []


async def test_a_cancel_rings_the_worker_of_the_job(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    async with listening(shard, worker.id) as bells:
        await worker.take()
        wait = asyncio.create_task(bells.wait(5))
        await asleep(shard)
        await shard.queue.cancel(id)
        assert await wait == f"cancel {id} {worker.held[id]}"


async def test_retiring_a_worker_removes_its_bell(shard: Shard) -> None:
    id = await shard.add()
    worker = await shard.worker()
    claimed = await worker.take()
    await shard.queue.cancel(id)
    await worker.end(claimed, State.CANCELLED)
    await shard.queue.retire(worker.id)
    assert not [key for key in (await shard.snapshot()).ttl if worker.id in key]


async def test_retiring_a_worker_rings_for_due_jobs(shard: Shard) -> None:
    worker, other = await shard.worker(), await shard.worker()
    await shard.add()
    assert await rung(shard) == ["1"]  # the bell is lost on its way
    await shard.queue.retire(worker.id)
    assert await rung(shard) == ["1"]
    await other.take()
    await shard.queue.retire(other.id)
    assert await rung(shard) == []


async def test_a_cancelled_wait_swallows_no_later_bell(shard: Shard) -> None:
    async with listening(shard, "default") as bells:
        wait = asyncio.create_task(bells.wait(5))
        await asleep(shard)
        wait.cancel()
        await asyncio.wait({wait})
        await asleep(shard, 0)
        await shard.add()
        assert await bells.wait(5) == "1"


async def test_a_broken_connection_raises_and_is_replaced(shard: Shard) -> None:
    async with listening(shard, "default") as bells:
        wait = asyncio.create_task(bells.wait(5))
        await asleep(shard)
        await execute(shard.redis, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        with pytest.raises(Unavailable):
            await wait
        await shard.add()
        assert await bells.wait(5) == "1"


async def test_a_wait_without_redis_raises_unavailable(shard: Shard) -> None:
    redis = connect("redis://127.0.0.1:1/0", timeout=0.5)
    bells = Bells(redis, shard.queue.prefix, ("default",))
    with pytest.raises(Unavailable):
        await bells.wait(1)
    await redis.aclose()
