"""What a claim costs does not grow with what its worker does not serve. Redis counts commands."""

from collections.abc import Awaitable, Callable

import pytest

from tandem_shared.jobs.states import State
from tests.shared.queue.model.shard import Shard, Worker, job

Prepare = Callable[[Shard, int], Awaitable[object]]


async def commands(shard: Shard, worker: Worker) -> int:
    """Commands that an idle claim makes within Redis."""
    await worker.claim()
    await shard.redis.config_resetstat()
    assert await worker.claim() == []
    stats = await shard.redis.info("commandstats")
    return sum(one["calls"] for name, one in stats.items() if not name.startswith("cmdstat_config"))


async def paused(shard: Shard, number: int) -> None:
    for index in range(number):
        await shard.queue.pause(f"p{index}", on=True)


async def reasons(shard: Shard, number: int) -> None:
    await shard.submit(*(job(f"u{index}", queue="other") for index in range(number)))
    other = await shard.worker(queues=["other"])
    for _ in range(number // 200 + 1):
        await other.call(slots=100)


async def scheduled(shard: Shard, number: int) -> None:
    await shard.submit(*(job(queue=f"s{index}", delay=60) for index in range(number)))


async def suspended(shard: Shard, number: int) -> None:
    ids = await shard.submit(*(job(queue="other", max_attempts=9) for index in range(number)))
    for _ in range(2):
        other = await shard.worker(queues=["other"])
        while len(other.held) < len(ids):
            await other.claim(slots=100)
        other.held.clear()
        await shard.silence()
        await shard.wait(5)


@pytest.mark.parametrize("prepare", [paused, reasons, scheduled, suspended])
async def test_an_idle_claim_costs_the_same(shard: Shard, prepare: Prepare) -> None:
    worker = await shard.worker()
    before = await commands(shard, worker)
    await prepare(shard, 300)
    assert await commands(shard, worker) <= before + 2


async def test_many_reasons_of_its_own_queue_cost_a_worker_no_more(shard: Shard) -> None:
    worker = await shard.worker({"t": 3})
    await unknown(shard, worker, 100)
    before = await commands(shard, worker)
    await unknown(shard, worker, 1000)
    assert await commands(shard, worker) <= before + 2
    # A worker that can run some of the jobs takes them nevertheless, of whatever version.
    ids = set(await shard.submit(*(job(version=version) for version in (1, 2, 3))))
    await (await shard.worker({"other": 1})).call(slots=100)
    assert {await shard.state(id) for id in ids} == {State.WAITING}
    taken: set[str] = set()
    while taken != ids:
        taken |= {one.id for one in await worker.claim()}


async def unknown(shard: Shard, worker: Worker, number: int) -> None:
    """Jobs of so many tasks that nobody knows."""
    await shard.submit(*(job(f"u{index}") for index in range(number)))
    for _ in range(number // 200 + 1):
        assert await worker.claim(slots=100) == []


async def test_idle_workers_of_other_queues_sleep_on(shard: Shard) -> None:
    worker = await shard.worker(queues=["other"])
    await shard.add(delay=2.0)
    assert (await worker.call()).next_due is None
    limited = await shard.worker(rate="1/s")
    await shard.submit(job(), job())
    assert len(await limited.claim()) == 1
    assert (await worker.call()).next_due is None
    assert (await limited.call()).next_due == 1.0


async def test_many_due_jobs_do_not_delay_one_of_high_priority(shard: Shard) -> None:
    await shard.submit(*(job(delay=1.0) for _ in range(3000)))
    await shard.turn(0.001)
    high = await shard.add(priority="high", delay=1.0)
    worker = await shard.worker()
    await shard.turn(1.5)
    assert [one.id for one in await worker.claim(slots=1)] == [high]


async def test_a_tick_goes_on_until_nothing_is_due(shard: Shard) -> None:
    await shard.submit(*(job(expires_in=3.0) for _ in range(1500)))
    await shard.wait(2)
    await shard.wait(2)
    assert (await shard.snapshot()).counts == {}
