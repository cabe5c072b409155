"""Tandem beside plain arq: no-op jobs through one worker and two, submitting, and the latency of a single job.

`make bench`, or `.venv/bin/python bench/noop.py [--jobs N] [--rounds N] [--quick]`. README.md beside this says what is
measured and how; the figures go to RESULTS.md and results.json.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import aiohttp
import arq
import msgspec
import uvloop
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job as ArqJob
from arq.jobs import deserialize_result

from shared.errors import TandemError
from shared.jobs import Options, Record, State, Submission, new_id
from shared.queue import Queue, connect
from shared.services import free_port, redis_server, tied

HERE, ROOT = Path(__file__).parent, Path(__file__).parent.parent
TASK = "bench.noop"
PAYLOAD: dict[str, Any] = {
    "customer": 4711,
    "address": "Lindenstr. 9, 10969 Berlin",
    "items": [3, 1, 4, 1, 5],
    "note": "n" * 24,
}
OPTIONS = Options(timeout=30.0, retry={"max_attempts": 3})
WARM_UP = 500  # jobs before the clock: imports, script caches and connections are there
PATIENCE = 300.0  # seconds after which whatever does not end has failed


class Broken(Exception):
    """Something did not run: there is no figure."""


class Process:
    """A child in a process group of its own that ends with this one."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name, self._log = name, log
        path, ledger = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", f"sqlite://{log.parent}/ledger.db"
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                tied(argv),
                cwd=ROOT,
                env={"TANDEM_DATABASE_URL": ledger, **os.environ, "PYTHONPATH": path, **(env or {})},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    async def until(self, fact: Callable[[], Awaitable[Any]]) -> None:
        """Waits for a fact that it makes. Raises Broken if it ends before, or takes too long."""
        late = perf_counter() + PATIENCE
        while not await fact():
            if (code := self.popen.poll()) is not None or perf_counter() > late:
                how = "takes too long" if code is None else f"ended with {code}"
                raise Broken(f"{self.name} {how}\n{self._log.read_text(errors='replace')[-2000:]}")
            await asyncio.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Stops it, or lets it go on."""
        self.popen.send_signal(number)

    def end(self) -> None:
        """Kills it: nothing that it holds is of value."""
        self.popen.kill()
        self.popen.communicate()


class System(Protocol):
    """A queue and its workers on one Redis.

    `start_worker` returns when it takes jobs; `submit` enqueues as fast as one client can; `span` is the seconds from
    the first start to the last end as stored, and raises Broken unless all succeeded; `once` takes one job to its end.
    """

    async def start_worker(self, log: Path) -> Process: ...
    async def submit(self, count: int) -> list[str]: ...
    async def drained(self) -> bool: ...
    async def span(self, ids: Sequence[str]) -> float: ...
    async def once(self) -> None: ...


class Tandem:
    """Records, events, counts, news, leases and fences: what the service does for every job."""

    def __init__(self, url: str, queue: Queue) -> None:
        self.queue, self._workers = queue, 0
        self.env = {"TANDEM_REDIS_URL": url, "TANDEM_TASKS": "bench.tasks", "TANDEM_CONCURRENCY": "100"}

    async def start_worker(self, log: Path) -> Process:
        process = Process("python -m worker", [sys.executable, "-m", "worker"], log, self.env)
        self._workers += 1

        async def registered() -> bool:
            return len(await self.queue.workers()) == self._workers

        await process.until(registered)
        return process

    def _job(self) -> Submission:
        return Submission(id=new_id(), task=TASK, payload=msgspec.json.encode(PAYLOAD), options=OPTIONS)

    async def submit(self, count: int) -> list[str]:
        jobs = [self._job() for _ in range(count)]
        await self.queue.submit_many(jobs)
        return [job.id for job in jobs]

    async def drained(self) -> bool:
        stats = await self.queue.stats()
        return not any(one.waiting or one.scheduled or one.queued or one.running or one.retrying for one in stats)

    async def span(self, ids: Sequence[str]) -> float:
        records: list[Record] = []
        for start in range(0, len(ids), 5000):
            found = await asyncio.gather(*(self.queue.get(id) for id in ids[start : start + 5000]))
            records += [one for one in found if one is not None and one.state is State.SUCCEEDED]
        if len(records) != len(ids):
            raise Broken(f"Tandem: {len(records)} of {len(ids)} jobs succeeded")
        return (max(one.ended or 0 for one in records) - min(one.began or 0 for one in records)) / 1e6

    async def once(self) -> None:
        job = self._job()
        async with self.queue.watch(job.id) as change:
            await self.queue.submit(job)
            while (record := await self.queue.get(job.id)) is None or not record.done:
                await change.wait()
        if record.state is not State.SUCCEEDED:
            raise Broken(f"Tandem: the job ended as {record.state}")


class Arq:
    """Plain arq, tuned: see tasks.py."""

    def __init__(self, url: str, redis: ArqRedis) -> None:
        self.url, self.redis, self._workers = url, redis, 0

    async def start_worker(self, log: Path) -> Process:
        argv = [sys.executable, "-m", "arq", "bench.tasks.ArqWorker", "--custom-log-dict", "bench.tasks.SILENT"]
        process = Process("python -m arq", argv, log, {"BENCH_REDIS_URL": self.url})
        self._workers += 1

        async def started() -> bool:
            return int(await self.redis.get("bench:ready") or 0) == self._workers

        await process.until(started)
        return process

    async def _enqueue(self) -> ArqJob:
        job = await self.redis.enqueue_job("arq_noop", **PAYLOAD)
        if job is None:
            raise Broken("arq: the id was known")
        return job

    async def submit(self, count: int) -> list[str]:
        ids: list[str] = []
        for start in range(0, count, 50):  # at once, each on its connection
            jobs = await asyncio.gather(*(self._enqueue() for _ in range(min(50, count - start))))
            ids += [job.job_id for job in jobs]
        return ids

    async def drained(self) -> bool:
        return not await self.redis.zcard("arq:queue")

    async def span(self, ids: Sequence[str]) -> float:
        results = []
        for start in range(0, len(ids), 1000):
            bodies = await self.redis.mget([f"arq:result:{id}" for id in ids[start : start + 1000]])
            results += [deserialize_result(one, deserializer=msgspec.json.decode) for one in bodies if one is not None]
        if len(results) != len(ids) or not all(one.success for one in results):
            raise Broken(f"arq: {sum(one.success for one in results)} of {len(ids)} jobs succeeded")
        return (max(one.finish_time for one in results) - min(one.start_time for one in results)).total_seconds()

    async def once(self) -> None:
        job = await self._enqueue()
        await job.result(timeout=5, poll_delay=0.001)


@contextlib.asynccontextmanager
async def open_redis(data: Path) -> AsyncIterator[str]:
    """A Redis of its own, with an append-only file (everysec); its URL."""
    server = redis_server(data)
    process = Process(server.name, server.argv, data / "redis.out")
    try:
        await process.until(server.ready)
        yield server.url
    finally:
        process.end()


@contextlib.asynccontextmanager
async def open_system(name: str, url: str) -> AsyncIterator[System]:
    """The client side of a system."""
    if name == "tandem":
        redis = connect(url)
        queue = Queue(redis)
        try:
            yield Tandem(url, queue)
        finally:
            await queue.close()
            await redis.aclose()
    else:
        pool = await arq.create_pool(
            RedisSettings.from_dsn(url), job_serializer=msgspec.json.encode, job_deserializer=msgspec.json.decode
        )
        try:
            yield Arq(url, pool)
        finally:
            await pool.aclose()


async def throughput(system: System, workers: Sequence[Process], jobs: int) -> tuple[float, float]:
    """Jobs per second submitted, and processed: the workers are stopped until all jobs are there."""
    for worker in workers:
        worker.signal(signal.SIGSTOP)
    start = perf_counter()
    ids = await system.submit(jobs)
    submitted = jobs / (perf_counter() - start)
    for worker in workers:
        worker.signal(signal.SIGCONT)
    await workers[0].until(system.drained)
    return submitted, jobs / await system.span(ids)


async def latency(once: Callable[[], Awaitable[None]], samples: int) -> tuple[float, float]:
    """Median and 99th percentile, in ms, of one job after the other."""
    times = []
    for _ in range(samples):
        start = perf_counter()
        await once()
        times.append(1000 * (perf_counter() - start))
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


async def http_latency(system: Tandem, data: Path, samples: int) -> tuple[float, float]:
    """The same through the API: one POST that waits for the result, over one connection."""
    port = free_port()
    env = {**system.env, "TANDEM_PORT": str(port)}
    api = Process("python -m api", [sys.executable, "-m", "api"], data / "api.log", env)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=aiohttp.ClientTimeout(30)) as session:

            async def ready() -> bool:
                try:
                    async with session.get("/readyz") as response:
                        return response.status == 200
                except aiohttp.ClientConnectionError:
                    return False

            async def once() -> None:
                job = {"task": TASK, "payload": PAYLOAD}
                async with session.post("/v1/jobs", json=job, headers={"Prefer": "wait=5"}) as response:
                    body = await response.json()
                    if body.get("state") != "succeeded":
                        raise Broken(f"POST /v1/jobs answered {response.status}: {body}")

            await api.until(ready)
            await latency(once, 20)
            return await latency(once, samples)
    finally:
        api.end()


async def measure(name: str, jobs: int, samples: int) -> dict[str, float]:
    """Everything about one system, on a Redis of its own."""
    found: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        url = await stack.enter_async_context(open_redis(data))
        system = await stack.enter_async_context(open_system(name, url))
        workers: list[Process] = []
        for count in (1, 2):
            workers.append(await system.start_worker(data / f"worker-{count}.log"))
            stack.callback(workers[-1].end)
            await system.submit(WARM_UP)
            await workers[-1].until(system.drained)
            if count == 1:
                await latency(system.once, 20)
                found["p50_ms"], found["p99_ms"] = await latency(system.once, samples)
                if isinstance(system, Tandem):
                    found["http_p50_ms"], found["http_p99_ms"] = await http_latency(system, data, samples)
            submitted, processed = await throughput(system, workers, jobs)
            found[f"jobs_per_s_{count}"] = processed
            found["submits_per_s"] = max(submitted, found.get("submits_per_s", 0.0))
        found["scaling"] = found["jobs_per_s_2"] / found["jobs_per_s_1"]
    return {key: round(value, 3) for key, value in found.items()}


ROWS = (  # key, what it is, unit, digits
    ("jobs_per_s_1", "no-op jobs, one worker", "jobs/s", 0),
    ("jobs_per_s_2", "no-op jobs, two workers", "jobs/s", 0),
    ("scaling", "two workers against one", "×", 2),
    ("submits_per_s", "submitted by one client", "jobs/s", 0),
    ("p50_ms", "submit → result, idle, median", "ms", 2),
    ("p99_ms", "submit → result, idle, 99th percentile", "ms", 2),
    ("http_p50_ms", "POST with Prefer: wait, idle, median", "ms", 2),
    ("http_p99_ms", "POST with Prefer: wait, idle, 99th percentile", "ms", 2),
)


def spread(values: Sequence[float], digits: int) -> str:
    """`median (least to most)`."""
    if not values:
        return "–"
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def table(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Lines of Markdown. A ratio is taken within each round, where both had the same neighbours."""
    lines = ["| median (least to most) | Tandem | arq, tuned | Tandem / arq, by round |", "|---|---|---|---|"]
    for key, what, unit, digits in ROWS:
        ours = [one["tandem"][key] for one in rounds if key in one["tandem"]]
        theirs = [one["arq"][key] for one in rounds if key in one["arq"]]
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=False)] if key != "scaling" else []
        lines.append(f"| {what}, {unit} | {spread(ours, digits)} | {spread(theirs, digits)} | {spread(ratios, 2)} |")
    return lines


def facts() -> dict[str, Any]:
    """What the figures depend on."""
    program = redis_server(Path(tempfile.gettempdir())).argv[0]
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    return {
        "measured": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "redis_server": next((word[2:] for word in said.split() if word.startswith("v=")), "unknown"),
        **{name: version(name) for name in ("arq", "redis", "hiredis", "uvloop")},
    }


def write(made: Mapping[str, Any], lines: Sequence[str]) -> None:
    """RESULTS.md and results.json."""
    (HERE / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")
    about = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in made["machine"].items())
    text = f"""# The last figures

Written by `make bench`; README.md says what is measured and how.
{made["jobs"]:,} jobs, {len(made["rounds"])} rounds, AOF everysec; {about}.

"""
    (HERE / "RESULTS.md").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")


async def run(jobs: int, rounds: int, samples: int) -> None:
    """Tandem and arq in turn."""
    machine = facts()
    done: list[dict[str, dict[str, float]]] = []
    for number in range(1, rounds + 1):
        found = {}
        for name in ("tandem", "arq"):
            found[name] = await measure(name, jobs, samples)
            figures = "  ".join(f"{key} {value:,.2f}" for key, value in found[name].items())
            print(f"round {number} {name:<6} {figures}", flush=True)
        done.append(found)
    lines = table(done)
    print("\n" + "\n".join(lines))
    write({"machine": machine, "jobs": jobs, "samples": samples, "rounds": done}, lines)


def main() -> int:
    """0 whatever the figures are, 1 when something did not run."""
    parser = argparse.ArgumentParser(description="Tandem beside plain arq, in one run on one machine.")
    parser.add_argument("--jobs", type=int, default=20_000, help="no-op jobs a measurement (20000)")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured, in turn (3)")
    parser.add_argument("--quick", action="store_true", help="2,000 jobs, one round: whether it runs at all")
    options = parser.parse_args()
    jobs, rounds, samples = (2000, 1, 100) if options.quick else (options.jobs, options.rounds, 500)
    try:
        uvloop.run(run(jobs, rounds, samples))
    except (Broken, TandemError, OSError, subprocess.SubprocessError) as error:
        print(f"the benchmark did not run: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
