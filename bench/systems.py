"""Queues and their workers: Tandem and the peers, each with its own virtual environment, all driven in the same way."""

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

from bench.processes import HERE, PATIENCE, Broken, Process, open_redis

TANDEM = "tandem"
PEERS = (
    "arq",
    "saq",
    "taskiq",
    "dramatiq",
    "celery",
)  # peers/<name>.py drives it, peers/<name>.txt pins it
WEB = "web"  # FastAPI in front of arq
NAMES = {
    "tandem": "Tandem", "arq": "arq, tuned", "taskiq": "taskiq-redis", "web": "FastAPI + arq",
}  # fmt: skip
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem-bench"
LONG_ENOUGH = 0.25  # seconds of a warm-up that says how many jobs a measurement needs
WARM_UP = 300  # jobs before the clock: imports, script caches and connections are there


def python(name: str) -> str:
    """The interpreter of a system's virtual environment."""
    if name == TANDEM:
        return sys.executable
    pins = HERE / "peers" / f"{name}.txt"
    digest = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()[:12]
    return str(CACHE / f"{name}-{digest}" / "bin" / "python")


def install(names: Sequence[str]) -> None:
    """Makes the virtual environments that are not there yet. Raises CalledProcessError with pip's words on stderr."""
    for name in names:
        program = Path(python(name))
        stamp = program.parent.parent / "installed"
        if name == TANDEM or stamp.exists():
            continue
        print(f"installing {name} in {program.parent.parent}", flush=True)
        subprocess.run(
            [sys.executable, "-m", "venv", "--clear", program.parent.parent],
            check=True,
            timeout=PATIENCE,
        )
        pins = HERE / "peers" / f"{name}.txt"
        subprocess.run(
            [
                program,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "-r",
                pins,
            ],
            check=True,
            timeout=2 * PATIENCE,
        )
        stamp.touch()


class Client:
    """The process beside the queue's own client, see peers/driver.py."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def ask(self, what: str, **given: Any) -> Any:
        """The answer. Raises Broken."""
        pipes = self.process.popen
        if pipes.stdin is None or pipes.stdout is None:
            raise self.process.broken("has no pipes")
        with contextlib.suppress(BrokenPipeError):
            pipes.stdin.write(msgspec.json.encode({"what": what, **given}) + b"\n")
            pipes.stdin.flush()
        line = await asyncio.to_thread(pipes.stdout.readline)
        if not line:
            raise self.process.broken(f"did not answer to {what!r}")
        return msgspec.json.decode(line)


@dataclass(frozen=True, slots=True)
class Done:
    """Seconds to submit, seconds from the workers' going on to the last result, when they went on, CPU seconds."""

    submitting: float
    seconds: float
    began: float
    worker_cpu: float
    redis_cpu: float


@dataclass(slots=True)
class System:
    """A queue on a Redis of its own; what is started here ends with it."""

    name: str
    data: Path
    env: dict[str, str]
    redis: "Redis"
    client: Client
    workers: list[Process] = field(default_factory=list)
    begun: list[Process] = field(default_factory=list)

    def begin(self, what: str, argv: Sequence[str], *, talks: bool = False) -> Process:
        """A process in the system's virtual environment."""
        number = len(self.begun)
        name = f"{self.name} {what}"
        process = Process(
            name,
            [python(self.name), *argv],
            self.data / f"{what}-{number}.log",
            self.env,
            talks=talks,
        )
        self.begun.append(process)
        return process

    async def another_client(self) -> Client:
        """One more, beside `client`."""
        return Client(self.begin("client", ["-m", f"bench.peers.{self.name}"], talks=True))

    async def start_worker(self) -> None:
        """Returns when it takes jobs and has done some."""
        process = self.begin("worker", await self.client.ask("worker"))
        self.workers.append(process)

        async def ready() -> bool:
            return int(await self.client.ask("ready")) >= len(self.workers)

        await process.until(ready)

    async def warm(self, sleep: float = 0.0) -> float:
        """Lets the workers do some jobs, more as long as they take no time; about how many they do in a second."""
        rate = 0.0
        for count in (WARM_UP // 3, WARM_UP, 4 * WARM_UP, 16 * WARM_UP, 64 * WARM_UP):
            began = perf_counter()
            await self.client.ask("submit", count=count, sleep=sleep)
            ended = await self._finished()
            rate = count / (ended - began)
            if ended - began > LONG_ENOUGH:
                break
        return rate

    async def _finished(self) -> float:
        answer = asyncio.create_task(self.client.ask("finished"))
        while not answer.done():
            await asyncio.wait([answer], timeout=1)
            for worker in self.workers:
                if (code := worker.popen.poll()) is not None:
                    raise worker.broken(f"ended with {code}")
        return float(await answer)

    async def run(self, count: int, sleep: float = 0.0) -> Done:
        """So many jobs, submitted while the workers are stopped. Raises Broken unless every one has succeeded."""
        for worker in self.workers:
            worker.signal(signal.SIGSTOP)
        submitted = float(await self.client.ask("submit", count=count, sleep=sleep))
        worker_cpu, redis_cpu = await self._cpu()
        began = perf_counter()
        for worker in self.workers:
            worker.signal(signal.SIGCONT)
        ended = await self._finished()
        worker_after, redis_after = await self._cpu()
        if (good := await self.client.ask("succeeded")) != count:
            raise Broken(f"{self.name}: {good} of {count} jobs succeeded")
        return Done(
            submitted, ended - began, began, worker_after - worker_cpu, redis_after - redis_cpu
        )

    async def _cpu(self) -> tuple[float, float]:
        """Seconds of computing so far: of all workers, and of Redis."""
        info = await self.redis.info("cpu")
        return sum(worker.cpu() for worker in self.workers), info["used_cpu_user"] + info[
            "used_cpu_sys"
        ]

    async def used(self) -> int:
        """Bytes that Redis holds."""
        return int((await self.redis.info("memory"))["used_memory"])


@contextlib.asynccontextmanager
async def open_system(name: str, **env: str) -> AsyncIterator[System]:
    """The queue without workers."""
    async with contextlib.AsyncExitStack() as stack:
        data = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        url = await stack.enter_async_context(open_redis(data))
        given = {
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
        process = Process(f"{name} client", argv, data / "client.log", given, talks=True)
        stack.callback(process.end)
        system = System(name, data, given, redis, Client(process))
        try:
            yield system
        finally:
            for one in system.begun:
                one.end()
