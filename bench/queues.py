"""Queues beside each other: no-op jobs, latency, jobs that wait, memory, and what an idle worker costs."""

import asyncio
import math
import statistics
from collections.abc import AsyncIterator
from time import perf_counter

from bench.figures import Figure
from bench.systems import NAMES, TANDEM, System, open_system

NAP = 0.05  # seconds of a job that waits
WAVES = 4  # times at least that all slots are filled
SAMPLES = (100, 2000)  # single jobs for a latency: at least, whatever it takes, and at most
MOST = 200_000  # jobs at most in one measurement
RUNNING = 1000
QUIET = 5.0  # seconds at least for what is seldom


def named(name: str) -> str:
    return NAMES.get(name, name)


def fitting(rate: float, seconds: float) -> int:
    """Jobs that take about so long."""
    return max(200, min(MOST, int(rate * seconds)))


async def throughput(name: str, seconds: float) -> AsyncIterator[Figure]:
    """Item 1: no-op jobs."""
    async with open_system(name) as system:
        rates, submits = [], []
        for words in ("one worker", "two workers"):
            await system.start_worker()
            count = fitting(await system.warm(), seconds)
            done = await system.run(count)
            rates.append(count / done.seconds)
            submits.append(count / done.submitting)
            yield Figure(f"no-op jobs, {words}", "jobs/s", named(name), rates[-1])
            if len(rates) == 1:
                yield Figure(
                    "CPU of the worker for a no-op job",
                    "µs",
                    named(name),
                    done.worker_cpu / count * 1e6,
                )
                yield Figure(
                    "CPU of Redis for a no-op job", "µs", named(name), done.redis_cpu / count * 1e6
                )
            if name == TANDEM:
                recorded = float(await system.client.ask("recorded")) - done.began
                yield Figure(
                    f"no-op jobs, {words}, until the ledger has all",
                    "jobs/s",
                    named(name),
                    count / recorded,
                )
        yield Figure("two workers against one", "×", named(name), rates[1] / rates[0])
        yield Figure("submitted by one client", "jobs/s", named(name), max(submits))


async def latency(name: str, seconds: float) -> AsyncIterator[Figure]:
    """Item 3: from the submission to the result, idle and while as many jobs come as half of what the worker can do."""
    async with open_system(name) as system:
        await system.start_worker()
        capacity = await system.warm()
        await system.client.ask("latency", samples=20)
        quiet: list[float] = []
        late = perf_counter() + seconds
        while len(quiet) < SAMPLES[0] or (len(quiet) < SAMPLES[1] and perf_counter() < late):
            quiet += await system.client.ask("latency", samples=20)
        other = await system.another_client()
        loaded = asyncio.create_task(other.ask("load", rate=capacity / 2, seconds=seconds))
        busy: list[float] = []
        while not loaded.done():
            busy += await system.client.ask("latency", samples=10)
        await loaded
        for words, times in (("idle", quiet), ("half load", busy)):
            yield Figure(
                f"submit → result, {words}, median", "ms", named(name), statistics.median(times)
            )
            rare = statistics.quantiles(times, n=100)[98]
            yield Figure(f"submit → result, {words}, 99th percentile", "ms", named(name), rare)


async def waiting(name: str, seconds: float) -> AsyncIterator[Figure]:
    """Item 5: jobs of 50 ms, so many at once, against what would be possible."""
    for concurrency in (100, 1000):
        async with open_system(name, BENCH_CONCURRENCY=str(concurrency), BENCH_WAITS="1") as system:
            await system.start_worker()
            rate = min(concurrency / NAP, await system.warm(NAP))
            count = max(WAVES, math.ceil(fitting(rate, seconds) / concurrency)) * concurrency
            done = await system.run(count, NAP)
            yield Figure(
                f"jobs of 50 ms, {concurrency:,} at once",
                "jobs/s",
                named(name),
                count / done.seconds,
            )
            ideal = 100 * count / concurrency * NAP / done.seconds
            yield Figure(
                f"jobs of 50 ms, {concurrency:,} at once, of the ideal", "%", named(name), ideal
            )


async def bytes_of(name: str, seconds: float) -> AsyncIterator[Figure]:
    """Item 7: what Redis holds for a job that waits, and for one that has ended, with its result."""
    async with open_system(name) as system:
        before, count = await system.used(), fitting(1000, seconds)
        await system.client.ask("submit", count=count)
        await asyncio.sleep(1.5)  # the append-only file's buffer is written each second
        yield Figure(
            "Redis per waiting job", "bytes", named(name), (await system.used() - before) / count
        )
        await system.start_worker()
        await system.client.ask("finished")
        await system.client.ask("recorded")
        await asyncio.sleep(1.5)
        yield Figure(
            "Redis per finished job", "bytes", named(name), (await system.used() - before) / count
        )


async def memory(name: str, seconds: float) -> AsyncIterator[Figure]:
    """Item 8: a worker's memory, that of its children included."""
    async with open_system(name, BENCH_CONCURRENCY=str(RUNNING), BENCH_WAITS="1") as system:
        await system.start_worker()
        yield Figure("worker, idle", "MiB", named(name), system.workers[0].rss())
        await system.client.ask("submit", count=RUNNING, sleep=60.0)
        most, late = 0.0, perf_counter() + max(QUIET, seconds)
        while perf_counter() < late:
            most = max(most, system.workers[0].rss())
            await asyncio.sleep(0.1)
        yield Figure(f"worker, {RUNNING:,} jobs running", "MiB", named(name), most)


async def quiet(name: str, seconds: float) -> AsyncIterator[Figure]:
    """Item 12: a worker that has nothing to do."""
    async with open_system(name) as system:
        await system.start_worker()
        await system.warm()
        await system.client.ask("recorded")
        await asyncio.sleep(1)
        worker, span = system.workers[0], max(QUIET, seconds)
        before = worker.cpu()
        commands = await commands_within(system, span)
        yield Figure("idle worker, sent to Redis", "commands/s", named(name), commands / span)
        yield Figure(
            "idle worker, of one core", "%", named(name), 100 * (worker.cpu() - before) / span
        )


async def commands_within(system: System, seconds: float) -> int:
    """Commands that Redis got meanwhile; what a script calls is not counted again."""
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
    """Item 12: Tandem with more workers than there are cores."""
    async with open_system(TANDEM) as system:
        for workers in (1, 2, 4, 8):
            while len(system.workers) < workers:
                await system.start_worker()
            count = fitting(await system.warm(), seconds)
            done = await system.run(count)
            yield Figure(
                f"no-op jobs, workers: {workers}", "jobs/s", named(TANDEM), count / done.seconds
            )
