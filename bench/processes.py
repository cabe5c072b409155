"""The children of a benchmark: a Redis, workers, APIs, clients, each in a process group of its own."""

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

from tandem_shared.dev.servers import free_port, redis_server, tied
from tandem_shared.queue.connections import connect
from tandem_shared.queue.queue import Queue

HERE, ROOT = Path(__file__).parent, Path(__file__).parent.parent
PATIENCE = 300.0  # seconds after which whatever does not end has failed


class Broken(Exception):
    """Something did not run: there is no figure."""


class Process:
    """A child that ends with this one."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        *,
        talks: bool = False,
    ) -> None:
        self.name, self._log = name, log
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                tied(argv),
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path, **(env or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if talks else output,
                stderr=output if talks else subprocess.STDOUT,
                process_group=0,
            )

    def broken(self, how: str) -> Broken:
        """What went wrong, with the end of its log."""
        return Broken(f"{self.name} {how}\n{self._log.read_text(errors='replace')[-2000:]}")

    async def until(self, fact: Callable[[], Awaitable[Any]]) -> None:
        """Waits for a fact that it makes. Raises Broken if it ends before, or takes too long."""
        late = perf_counter() + PATIENCE
        while not await fact():
            if (code := self.popen.poll()) is not None or perf_counter() > late:
                raise self.broken("takes too long" if code is None else f"ended with {code}")
            await asyncio.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Stops it and its children, or lets them go on."""
        os.killpg(self.popen.pid, number)

    def family(self) -> list[psutil.Process]:
        """It and its children."""
        own = psutil.Process(self.popen.pid)
        return [own, *own.children(recursive=True)]

    def rss(self) -> float:
        """MiB of memory, of its children too."""
        return self._sum(lambda one: float(one.memory_info().rss)) / (1 << 20)

    def cpu(self) -> float:
        """Seconds of computing so far, of its children too."""
        return self._sum(lambda one: float(sum(one.cpu_times()[:2])))

    def _sum(self, figure: Callable[[psutil.Process], float]) -> float:
        total = 0.0
        for one in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):  # a child may end meanwhile
                total += figure(one)
        return total

    def end(self) -> None:
        """Kills it and its children: nothing that they hold is of value."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.communicate()


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


@dataclass(frozen=True, slots=True)
class Service:
    """Tandem whole: API and worker as processes, a client of the API, and the queue."""

    data: Path
    port: int
    redis: "Redis"
    queue: Queue
    api: Process
    worker: Process
    client: aiohttp.ClientSession

    async def settled(self) -> bool:
        """Whether nothing is left to do."""
        stats = await self.queue.stats()
        return not any(
            one.waiting or one.scheduled or one.queued or one.running or one.retrying
            for one in stats
        )

    async def recorded(self) -> bool:
        """Whether the ledger has everything."""
        lag = await self.queue.events.lag()
        return lag is not None and lag.entries == 0


@contextlib.asynccontextmanager
async def open_service(**settings: str) -> AsyncIterator[Service]:
    """All of Tandem with everything on; `settings` are TANDEM_* variables. Ready when the API knows the tasks."""
    async with contextlib.AsyncExitStack() as stack:
        data = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        url, port = await stack.enter_async_context(open_redis(data)), free_port()
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
        timeout = aiohttp.ClientTimeout(PATIENCE)
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
        yield Service(data, port, redis, queue, api, worker, client)
