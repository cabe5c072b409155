"""Redis, an API and a worker as real processes, and a proxy that cuts connections to the API."""

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from tandem_shared.dev.servers import die_with_parent, free_port, redis_server
from tests.conftest import eventually, started
from tests.journeys.tasks import client_tasks

ROOT = Path(__file__).parent.parent.parent
KEY = "tk_abcd_0123456789abcdefSECRET"
START_SECONDS = 90.0  # at most, on a busy machine
CHUNK_BYTES = 16 << 10


class Pair:
    """The processes of one directory. The API and Redis can be ended and started again.

    `task`: one that the worker must know before the pair is ready. `program`: the module that is
    run as `tandem`, and its first arguments.
    """

    def __init__(
        self,
        directory: Path,
        *,
        task: str = "client.counts",
        modules: str = f"{client_tasks.__name__},wordcount",
        path: str = f"{ROOT / 'docs' / 'examples'}",
        cwd: Path = ROOT,
        program: tuple[str, ...] = ("tandem_jobs.cli",),
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._task, self._cwd, self._program = task, cwd, program
        self._log = (directory / "processes.log").open("ab")
        self._redis = redis_server(directory)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")},
            "TANDEM_REDIS_URL": self._redis.url,
            "TANDEM_STORE_URL": f"file://{directory}/store",
            "TANDEM_DATABASE_URL": f"sqlite://{directory}/tandem.db",
            "TANDEM_TASKS": modules,
            "PYTHONPATH": os.pathsep.join(filter(None, (path, os.environ.get("PYTHONPATH")))),
            "TANDEM_KEYS": KEY,
            "TANDEM_LEASE": "2s",
        }
        self._stack = ExitStack()
        self._redis_process: subprocess.Popen[bytes] | None = None
        self._api: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None

    def _spawn(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Run `tandem` with these arguments."""
        return subprocess.Popen(
            die_with_parent([sys.executable, "-m", *self._program, *arguments]),
            env=self._environment,
            cwd=self._cwd,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            process_group=0,
        )

    async def start(self) -> None:
        """Start everything; it is ready when this returns."""
        await self.start_redis()
        self._worker = self._spawn("worker")
        await self.start_api()

    async def repair(self) -> None:
        """Start what a failed test has left dead."""
        if not _is_running(self._redis_process):
            await self.start_redis()
        if not _is_running(self._api):
            await self.start_api()

    @property
    def is_complete(self) -> bool:
        """Whether all processes run."""
        return all(map(_is_running, (self._redis_process, self._api, self._worker)))

    async def start_redis(self) -> None:
        """Start Redis with the data that it had."""
        self._redis_process = self._stack.enter_context(started(self._redis))
        await eventually(self._redis.ready, START_SECONDS)

    def stop_redis(self) -> None:
        """End Redis by SIGTERM, which saves everything."""
        assert self._redis_process is not None
        self._redis_process.terminate()
        self._redis_process.wait(10)

    async def start_api(self) -> None:
        """Start the API; it is ready when this returns."""
        self._api = self._spawn("api", "--port", str(self.port))
        await eventually(self._is_ready, START_SECONDS)

    def kill_api(self) -> None:
        """End the API by SIGKILL."""
        _kill(self._api)

    async def _is_ready(self) -> bool:
        headers = {"Authorization": f"Bearer {KEY}"}
        with suppress(httpx2.TransportError):
            async with httpx2.AsyncClient(trust_env=False, headers=headers, timeout=5) as client:
                answer = await client.get(f"{self.url}/v1/tasks/{self._task}")
                return answer.status_code == 200
        return False

    def close(self) -> None:
        for process in (self._worker, self._api):
            _kill(process)
        self._stack.close()
        self._log.close()


def _is_running(process: subprocess.Popen[bytes] | None) -> bool:
    return process is not None and process.poll() is None


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.kill()
        process.communicate()


@contextmanager
def open_pair(pair: Pair) -> Iterator[Pair]:
    """Start the pair, and end its processes."""
    try:
        asyncio.run(pair.start())
        yield pair
    finally:
        pair.close()


class CuttingProxy:
    """Aborts its first `cuts` connections after a random number of bytes of one direction.

    A response is cut within its first `max_bytes`.
    """

    def __init__(self, target: str, *, cuts: int, max_bytes: int, seed: int) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "", parts.port or 0)
        self._random = random.Random(seed)
        self._max_bytes = max_bytes
        self.cuts_left = cuts
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection."""
        request_limit = response_limit = None
        if self.cuts_left:
            # Requests are short, so a fifth of the cuts is enough to hit them.
            if self._random.random() < 0.2:
                request_limit = self._random.randrange(100)
            else:
                response_limit = self._random.randrange(self._max_bytes)
        try:
            api_reader, api_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        pumps = [
            asyncio.create_task(self._pump(reader, api_writer, request_limit)),
            asyncio.create_task(self._pump(api_reader, writer, response_limit)),
        ]
        try:
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if any(pump.result() for pump in done):
                self.cuts_left = max(0, self.cuts_left - 1)
        finally:
            for pump in pumps:
                pump.cancel()
            writer.transport.abort()
            api_writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None
    ) -> bool:
        """Copy up to `limit` bytes; whether they were cut there."""
        copied = 0
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK_BYTES):
                is_cut = limit is not None and copied + len(data) > limit
                writer.write(data[: limit - copied] if limit is not None else data)
                await writer.drain()
                if is_cut:
                    return True
                copied += len(data)
        return False


@asynccontextmanager
async def cutting(
    target: str, *, cuts: int, max_bytes: int, seed: int
) -> AsyncIterator[CuttingProxy]:
    """A proxy that serves at its `url`."""
    proxy = CuttingProxy(target, cuts=cuts, max_bytes=max_bytes, seed=seed)
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(proxy.serve(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield proxy
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()
