"""Tandem and its peers, each in its own virtual environment and all driven in the same way."""

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import msgspec
from redis.asyncio import Redis

from bench.processes import HERE, TIMEOUT_SECONDS, MeasurementFailed, Process, open_redis

TANDEM = "tandem"
# peers/<name>.py drives each of them, peers/<name>.txt pins its packages.
PEERS = ("arq", "saq", "taskiq", "dramatiq", "celery")
WEB = "web"  # FastAPI in front of arq
LABELS = {"tandem": "Tandem", "arq": "arq, tuned", "taskiq": "taskiq-redis"}  # where they differ
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem-bench"
WARM_UP_SECONDS = 0.25  # of the round of jobs that determines how many a measurement needs
WARM_UP_JOBS = (100, 300, 1200, 4800, 19_200)  # per round, until one takes long enough


def python(name: str) -> str:
    """The Python interpreter of a system's virtual environment."""
    if name == TANDEM:
        return sys.executable
    pins = HERE / "peers" / f"{name}.txt"
    digest = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()[:12]
    return str(CACHE / f"{name}-{digest}" / "bin" / "python")


def install(names: Sequence[str]) -> None:
    """Create the missing virtual environments. Raises CalledProcessError if pip fails."""
    for name in names:
        program = Path(python(name))
        stamp = program.parent.parent / "installed"
        if name == TANDEM or stamp.exists():
            continue
        print(f"installing {name} in {program.parent.parent}", flush=True)
        venv = [sys.executable, "-m", "venv", "--clear", str(program.parent.parent)]
        subprocess.run(venv, check=True, timeout=TIMEOUT_SECONDS)
        pip = [str(program), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pins = HERE / "peers" / f"{name}.txt"
        command = [*pip, "--no-deps", "-r", str(pins)]
        subprocess.run(command, check=True, timeout=2 * TIMEOUT_SECONDS)
        stamp.touch()


class Client:
    """The process that drives the queue's own client: see peers/driver.py."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def ask(self, command: str, **arguments: Any) -> Any:
        """Run a command of peers/driver.py; its answer. Raises MeasurementFailed."""
        pipes = self.process.popen
        if pipes.stdin is None or pipes.stdout is None:
            raise self.process.failure("has no pipes")
        with contextlib.suppress(BrokenPipeError):
            pipes.stdin.write(msgspec.json.encode({"command": command, **arguments}) + b"\n")
            pipes.stdin.flush()
        line = await asyncio.to_thread(pipes.stdout.readline)
        if not line:
            raise self.process.failure(f"did not answer {command!r}")
        return msgspec.json.decode(line)


@dataclass(frozen=True, slots=True)
class RunTimes:
    """In seconds: `seconds` from `start`, when the workers resumed, to the last result."""

    submitting: float
    seconds: float
    start: float
    worker_cpu: float
    redis_cpu: float


@dataclass(slots=True)
class System:
    """A queue with its own Redis; every process started here ends with it."""

    name: str
    data: Path
    env: dict[str, str]
    redis: "Redis"
    client: Client
    workers: list[Process] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)

    def spawn(self, what: str, argv: Sequence[str], *, piped: bool = False) -> Process:
        """Start a process in the system's virtual environment."""
        number = len(self.processes)
        name, log = f"{self.name} {what}", self.data / f"{what}-{number}.log"
        process = Process(name, [python(self.name), *argv], log, self.env, piped=piped)
        self.processes.append(process)
        return process

    async def another_client(self) -> Client:
        """A second client."""
        return Client(self.spawn("client", ["-m", f"bench.peers.{self.name}"], piped=True))

    async def start_worker(self) -> None:
        """Start a worker; returns once it takes jobs."""
        process = self.spawn("worker", await self.client.ask("worker"))
        self.workers.append(process)

        async def ready() -> bool:
            return int(await self.client.ask("ready")) >= len(self.workers)

        await process.until(ready)

    async def warm_up(self, sleep: float = 0.0) -> float:
        """Run rounds of more and more jobs until one takes long enough; its jobs per second."""
        rate = 0.0
        for count in WARM_UP_JOBS:
            start = perf_counter()
            await self.client.ask("submit", count=count, sleep=sleep)
            spent = await self._finished() - start
            rate = count / spent
            if spent > WARM_UP_SECONDS:
                break
        return rate

    async def _finished(self) -> float:
        """When the last job had ended. Raises MeasurementFailed if a worker exits."""
        answer = asyncio.create_task(self.client.ask("finished"))
        while not answer.done():
            await asyncio.wait([answer], timeout=1)
            for worker in self.workers:
                if (code := worker.popen.poll()) is not None:
                    raise worker.failure(f"exited with code {code}")
        return float(await answer)

    async def run(self, count: int, sleep: float = 0.0) -> RunTimes:
        """Submit jobs while the workers are stopped, then let them run.

        Raises MeasurementFailed unless every job succeeded.
        """
        for worker in self.workers:
            worker.signal(signal.SIGSTOP)
        submitting = float(await self.client.ask("submit", count=count, sleep=sleep))
        worker_cpu, redis_cpu = await self._cpu()
        start = perf_counter()
        for worker in self.workers:
            worker.signal(signal.SIGCONT)
        seconds = await self._finished() - start
        worker_after, redis_after = await self._cpu()
        succeeded = await self.client.ask("succeeded")
        if succeeded != count:
            raise MeasurementFailed(f"{self.name}: only {succeeded} of {count} jobs succeeded")
        worker_cpu, redis_cpu = worker_after - worker_cpu, redis_after - redis_cpu
        return RunTimes(submitting, seconds, start, worker_cpu, redis_cpu)

    async def _cpu(self) -> tuple[float, float]:
        """CPU seconds so far: of all workers, and of Redis."""
        info = await self.redis.info("cpu")
        redis_cpu = info["used_cpu_user"] + info["used_cpu_sys"]
        return sum(worker.cpu() for worker in self.workers), redis_cpu

    async def redis_bytes(self) -> int:
        """The memory that Redis uses."""
        return int((await self.redis.info("memory"))["used_memory"])


@contextlib.asynccontextmanager
async def open_system(name: str, **env: str) -> AsyncIterator[System]:
    """A queue without workers; `env` is added to the environment of its processes."""
    async with contextlib.AsyncExitStack() as stack:
        data = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        url, _ = await stack.enter_async_context(open_redis(data))
        environment = {
            "BENCH_REDIS_URL": url,
            "TANDEM_REDIS_URL": url,
            "TANDEM_DATABASE_URL": f"sqlite://{data / 'tandem.db'}",
            "TANDEM_STORE_URL": (data / "files").as_uri(),
            "TANDEM_TASKS": "bench.tasks",
            "TANDEM_CONCURRENCY": env.get("BENCH_CONCURRENCY", "100"),
            **env,
        }
        redis = Redis.from_url(url)
        stack.push_async_callback(redis.aclose)
        argv = [python(name), "-m", f"bench.peers.{name}"]
        log = data / "client.log"
        client = Process(f"{name} client", argv, log, environment, piped=True)
        stack.callback(client.end)
        system = System(name, data, environment, redis, Client(client))
        try:
            yield system
        finally:
            for process in system.processes:
                process.end()
