"""Tandem and its peers: no-op jobs, latency, waiting jobs, memory, and idle workers."""

import asyncio
import math
import statistics
from collections.abc import AsyncIterator
from time import perf_counter

from bench.figures import Figure
from bench.systems import LABELS, TANDEM, System, open_system

SLEEP_SECONDS = 0.05  # how long a waiting job takes
MIN_WAVES = 4  # how often all slots are filled
MIN_SAMPLES, MAX_SAMPLES = 100, 2000  # of a latency
MIN_JOBS, MAX_JOBS = 200, 200_000  # in one measurement
RUNNING_JOBS = 1000
MIN_IDLE_SECONDS = 5.0  # to observe what an idle worker rarely does


def label(name: str) -> str:
    return LABELS.get(name, name)


def jobs_for(rate: float, seconds: float) -> int:
    """The number of jobs that take about this long at this rate."""
    return max(MIN_JOBS, min(MAX_JOBS, int(rate * seconds)))


async def throughput(name: str, seconds: float) -> AsyncIterator[Figure]:
    """Item 1: no-op jobs."""
    system_label = label(name)
    async with open_system(name) as system:
        rates, submit_rates = [], []
        for workers in ("one worker", "two workers"):
            await system.start_worker()
            count = jobs_for(await system.warm_up(), seconds)
            done = await system.run(count)
            rates.append(count / done.seconds)
            submit_rates.append(count / done.submitting)
            yield Figure(f"no-op jobs, {workers}", "jobs/s", system_label, rates[-1])
            if workers == "one worker":
                for process, spent in (("worker", done.worker_cpu), ("Redis", done.redis_cpu)):
                    what = f"{process} CPU per no-op job"
                    yield Figure(what, "µs", system_label, spent / count * 1e6)
            if name == TANDEM:
                recorded = float(await system.client.ask("ledger_is_current")) - done.start
                what = f"no-op jobs, {workers}, including the ledger"
                yield Figure(what, "jobs/s", system_label, count / recorded)
        yield Figure("two workers compared with one", "×", system_label, rates[1] / rates[0])
        yield Figure("submitted by one client", "jobs/s", system_label, max(submit_rates))


async def latency(name: str, seconds: float) -> AsyncIterator[Figure]:
    """Item 3: from submission to result, when idle and at half the worker's capacity."""
    async with open_system(name) as system:
        await system.start_worker()
        capacity = await system.warm_up()
        await system.client.ask("latency", samples=20)
        idle: list[float] = []
        end = perf_counter() + seconds
        while len(idle) < MIN_SAMPLES or (len(idle) < MAX_SAMPLES and perf_counter() < end):
            idle += await system.client.ask("latency", samples=20)
        other = await system.another_client()
        load = asyncio.create_task(other.ask("load", rate=capacity / 2, seconds=seconds))
        loaded: list[float] = []
        while not load.done():
            loaded += await system.client.ask("latency", samples=10)
        await load
        for when, times in (("idle", idle), ("half load", loaded)):
            what = f"submit → result, {when}"
            yield Figure(f"{what}, median", "ms", label(name), statistics.median(times))
            percentile = statistics.quantiles(times, n=100)[98]
            yield Figure(f"{what}, 99th percentile", "ms", label(name), percentile)


async def waiting(name: str, seconds: float) -> AsyncIterator[Figure]:
    """Item 5: concurrent jobs of 50 ms, compared with the ideal throughput."""
    for concurrency in (100, 1000):
        async with open_system(name, BENCH_CONCURRENCY=str(concurrency), BENCH_WAITS="1") as system:
            await system.start_worker()
            ideal = concurrency / SLEEP_SECONDS
            rate = min(ideal, await system.warm_up(SLEEP_SECONDS))
            waves = max(MIN_WAVES, math.ceil(jobs_for(rate, seconds) / concurrency))
            count = waves * concurrency
            done = await system.run(count, SLEEP_SECONDS)
            what = f"jobs of 50 ms, {concurrency:,} concurrent"
            reached = count / done.seconds
            yield Figure(what, "jobs/s", label(name), reached)
            yield Figure(
                f"{what}, of the ideal throughput", "%", label(name), 100 * reached / ideal
            )


async def redis_per_job(name: str, seconds: float) -> AsyncIterator[Figure]:
    """Item 7: what Redis holds for a waiting job, and for a finished one with its result."""
    async with open_system(name) as system:
        before, count = await system.redis_bytes(), jobs_for(1000, seconds)
        await system.client.ask("submit", count=count)
        await asyncio.sleep(1.5)  # the append-only file's buffer is written once per second
        used = await system.redis_bytes() - before
        yield Figure("Redis per waiting job", "bytes", label(name), used / count)
        await system.start_worker()
        await system.client.ask("finished")
        await system.client.ask("ledger_is_current")
        await asyncio.sleep(1.5)
        used = await system.redis_bytes() - before
        yield Figure("Redis per finished job", "bytes", label(name), used / count)


async def memory(name: str, seconds: float) -> AsyncIterator[Figure]:
    """Item 8: a worker's memory, including its child processes."""
    async with open_system(name, BENCH_CONCURRENCY=str(RUNNING_JOBS), BENCH_WAITS="1") as system:
        await system.start_worker()
        yield Figure("worker, idle", "MiB", label(name), system.workers[0].rss())
        await system.client.ask("submit", count=RUNNING_JOBS, sleep=60.0)
        peak, end = 0.0, perf_counter() + max(MIN_IDLE_SECONDS, seconds)
        while perf_counter() < end:
            peak = max(peak, system.workers[0].rss())
            await asyncio.sleep(0.1)
        yield Figure(f"worker, {RUNNING_JOBS:,} jobs running", "MiB", label(name), peak)


async def idle_worker(name: str, seconds: float) -> AsyncIterator[Figure]:
    """Item 12: a worker that has nothing to do."""
    async with open_system(name) as system:
        await system.start_worker()
        await system.warm_up()
        await system.client.ask("ledger_is_current")
        await asyncio.sleep(1)
        worker, span = system.workers[0], max(MIN_IDLE_SECONDS, seconds)
        before = worker.cpu()
        commands = await commands_within(system, span)
        share = 100 * (worker.cpu() - before) / span
        yield Figure("idle worker, sent to Redis", "commands/s", label(name), commands / span)
        yield Figure("idle worker, share of one core", "%", label(name), share)


async def commands_within(system: System, seconds: float) -> int:
    """Commands that reach Redis in that time, without those inside scripts."""
    count = 0
    async with system.redis.monitor() as monitor:
        try:
            async with asyncio.timeout(seconds):
                async for command in monitor.listen():
                    count += command["client_type"] != "lua"
        except TimeoutError:
            pass
    return count


async def scaling(seconds: float) -> AsyncIterator[Figure]:
    """Item 12: Tandem with more workers than the machine has cores."""
    async with open_system(TANDEM) as system:
        for workers in (1, 2, 4, 8):
            while len(system.workers) < workers:
                await system.start_worker()
            count = jobs_for(await system.warm_up(), seconds)
            done = await system.run(count)
            what = f"no-op jobs, workers: {workers}"
            yield Figure(what, "jobs/s", label(TANDEM), count / done.seconds)
