"""The processes of a benchmark: Redis, workers, APIs and clients, each in its own process group."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import aiohttp
import psutil
from redis.asyncio import Redis

from tandem_shared.dev.servers import die_with_parent, free_port, redis_server
from tandem_shared.queue.connections import connect
from tandem_shared.queue.queue import Queue

HERE, ROOT = Path(__file__).parent, Path(__file__).parent.parent
TIMEOUT_SECONDS = 300.0  # for any single step


class MeasurementFailed(Exception):
    """Something did not run, so a figure is missing."""


class Process:
    """A child process that ends with this one."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        *,
        piped: bool = False,
    ) -> None:
        self.name, self._log = name, log
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                die_with_parent(argv),
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path, **(env or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if piped else output,
                stderr=output if piped else subprocess.STDOUT,
                process_group=0,
            )

    def failure(self, what: str) -> MeasurementFailed:
        """An error that says what went wrong, with the end of the process's log."""
        return MeasurementFailed(
            f"{self.name} {what}\n{self._log.read_text(errors='replace')[-2000:]}"
        )

    async def until(self, fact: Callable[[], Awaitable[Any]]) -> None:
        """Wait until `fact` returns a true value.

        Raises MeasurementFailed if the process exits first, or after TIMEOUT_SECONDS.
        """
        deadline = perf_counter() + TIMEOUT_SECONDS
        while not await fact():
            if (code := self.popen.poll()) is not None:
                raise self.failure(f"exited with code {code}")
            if perf_counter() > deadline:
                raise self.failure(f"was not ready after {TIMEOUT_SECONDS:g} s")
            await asyncio.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children."""
        os.killpg(self.popen.pid, number)

    def family(self) -> list[psutil.Process]:
        """The process and all of its descendants."""
        own = psutil.Process(self.popen.pid)
        return [own, *own.children(recursive=True)]

    def rss(self) -> float:
        """Memory in MiB, including its children."""
        return self._sum(lambda process: float(process.memory_info().rss)) / (1 << 20)

    def cpu(self) -> float:
        """CPU seconds so far, including its children."""
        return self._sum(lambda process: float(sum(process.cpu_times()[:2])))

    def _sum(self, figure: Callable[[psutil.Process], float]) -> float:
        total = 0.0
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):  # a child may have ended meanwhile
                total += figure(process)
        return total

    def end(self) -> None:
        """Kill the process and its children; their data is temporary."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.communicate()


@contextlib.asynccontextmanager
async def open_redis(data: Path) -> AsyncIterator[tuple[str, Process]]:
    """The URL and the process of a new Redis with an append-only file (everysec)."""
    server = redis_server(data)
    process = Process(server.name, server.argv, data / "redis.out")
    try:
        await process.until(server.ready)
        yield server.url, process
    finally:
        process.end()


@dataclass(frozen=True, slots=True)
class Service:
    """A complete Tandem: API and worker processes, an HTTP client of the API, and the queue."""

    data: Path
    port: int
    redis: "Redis"
    queue: Queue
    redis_process: Process
    api: Process
    worker: Process
    client: aiohttp.ClientSession

    def pids(self) -> dict[str, int]:
        """Process name → its pid."""
        processes = {"redis": self.redis_process, "worker": self.worker, "api": self.api}
        return {name: process.popen.pid for name, process in processes.items()}

    async def settled(self) -> bool:
        """Whether every job is final."""
        stats = await self.queue.stats()
        return not any(
            queue.waiting or queue.scheduled or queue.queued or queue.running or queue.retrying
            for queue in stats
        )

    async def ledger_is_current(self) -> bool:
        """Whether the ledger has caught up."""
        lag = await self.queue.events.lag()
        return lag is not None and lag.entries == 0


@contextlib.asynccontextmanager
async def open_service(**settings: str) -> AsyncIterator[Service]:
    """A Tandem with all features on, ready to take jobs; `settings` are TANDEM_* variables."""
    async with contextlib.AsyncExitStack() as stack:
        data = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        url, redis_process = await stack.enter_async_context(open_redis(data))
        port = free_port()
        env = {
            "TANDEM_REDIS_URL": url,
            "TANDEM_PORT": str(port),
            "TANDEM_STORE_URL": (data / "files").as_uri(),
            "TANDEM_DATABASE_URL": f"sqlite://{data / 'tandem.db'}",
            "TANDEM_TASKS": "bench.tasks",
            **settings,
        }
        api, worker = (
            Process(
                f"python -m {name}",
                [sys.executable, "-m", f"tandem_{name}"],
                data / f"{name}.log",
                env,
            )
            for name in ("api", "worker")
        )
        stack.callback(api.end)
        stack.callback(worker.end)
        redis = connect(url)
        stack.push_async_callback(redis.aclose)
        queue = Queue(redis)
        stack.push_async_callback(queue.close)
        timeout = aiohttp.ClientTimeout(TIMEOUT_SECONDS)
        client = await stack.enter_async_context(
            aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=timeout)
        )

        async def known() -> bool:
            try:
                async with client.get("/v1/tasks/bench.noop") as response:
                    return response.status == 200
            except aiohttp.ClientConnectionError:
                return False

        await worker.until(queue.workers)
        await api.until(known)
        yield Service(data, port, redis, queue, redis_process, api, worker, client)
