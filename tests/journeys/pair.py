"""A Redis, an API and a worker as real processes, and a proxy before the API that cuts connections."""

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

from tandem_shared.dev.servers import Server, die_with_parent, free_port, redis_server
from tests.conftest import eventually, started
from tests.journeys.tasks import client_tasks

ROOT = Path(__file__).parent.parent.parent
KEY = "tk_abcd_0123456789abcdefSECRET"
START = 90.0  # seconds at most, on a machine that has much else to do


class Pair:
    """Processes on one directory; the API may be killed and started again where it was."""

    def __init__(self, directory: Path, redis: Server) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = (directory / "processes.log").open("ab")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")},
            "TANDEM_REDIS_URL": redis.url,
            "TANDEM_STORE_URL": f"file://{directory}/store",
            "TANDEM_DATABASE_URL": f"sqlite://{directory}/tandem.db",
            "TANDEM_TASKS": f"{client_tasks.__name__},wordcount",
            "PYTHONPATH": os.pathsep.join(
                filter(None, (os.environ.get("PYTHONPATH"), str(ROOT / "docs" / "examples")))
            ),
            "TANDEM_KEYS": KEY,
            "TANDEM_LEASE": "2s",
        }
        self._redis = redis
        self._stack = ExitStack()
        self._redis_process: subprocess.Popen[bytes] | None = None
        self._api: subprocess.Popen[bytes] | None = None
        self._worker: subprocess.Popen[bytes] | None = None

    def _spawned(self, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            die_with_parent([sys.executable, "-m", *command]),
            env=self._environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            process_group=0,
        )

    async def start(self) -> None:
        """Everything; ready when this returns."""
        await self.start_redis()
        self._worker = self._spawned("tandem_worker")
        await self.start_api()

    async def mend(self) -> None:
        """Starts what a test that failed has left dead."""
        if self._redis_process is None or self._redis_process.poll() is not None:
            await self.start_redis()
        if self._api is None or self._api.poll() is not None:
            await self.start_api()

    @property
    def whole(self) -> bool:
        """Whether everything runs."""
        processes = (self._redis_process, self._api, self._worker)
        return all(process is not None and process.poll() is None for process in processes)

    async def start_redis(self) -> None:
        """With all that it had."""
        self._redis_process = self._stack.enter_context(started(self._redis))
        await eventually(self._redis.ready, START)

    def stop_redis(self) -> None:
        """SIGTERM: it keeps everything."""
        assert self._redis_process is not None
        self._redis_process.terminate()
        self._redis_process.wait(10)

    async def start_api(self) -> None:
        """Ready when this returns."""
        self._api = self._spawned("tandem_api", "--port", str(self.port))
        await eventually(self._ready, START)

    def kill_api(self) -> None:
        """SIGKILL."""
        _end(self._api)

    async def _ready(self) -> bool:
        headers = {"Authorization": f"Bearer {KEY}"}
        with suppress(httpx2.TransportError):
            async with httpx2.AsyncClient(trust_env=False, headers=headers, timeout=5) as client:
                return (await client.get(f"{self.url}/v1/tasks/client.counts")).status_code == 200
        return False

    def close(self) -> None:
        for process in (self._worker, self._api):
            _end(process)
        self._stack.close()
        self._log.close()


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.kill()
        process.communicate()


@contextmanager
def open_pair(directory: Path) -> Iterator[Pair]:
    """Everything is ready."""
    pair = Pair(directory, redis_server(directory))
    try:
        asyncio.run(pair.start())
        yield pair
    finally:
        pair.close()


class Cutter:
    """A proxy that aborts its first `cuts` connections after so many bytes of one direction, at random."""

    def __init__(self, target: str, *, cuts: int, most: int, seed: int) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "", parts.port or 0)
        self._random = random.Random(seed)
        self._most = most
        self.left = cuts
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        asked = answered = None
        if self.left:
            # Requests are short; what is lost of one counts as much.
            if self._random.random() < 0.2:
                asked = self._random.randrange(100)
            else:
                answered = self._random.randrange(self._most)
        try:
            behind, before = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        pumps = [
            asyncio.create_task(self._pump(reader, before, asked)),
            asyncio.create_task(self._pump(behind, writer, answered)),
        ]
        try:
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if any(pump.result() for pump in done):
                self.left = max(0, self.left - 1)
        finally:
            for pump in pumps:
                pump.cancel()
            writer.transport.abort()
            before.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None
    ) -> bool:
        """Whether it was cut."""
        passed = 0
        with suppress(ConnectionError):
            while piece := await reader.read(16 << 10):
                if most is not None and passed + len(piece) > most:
                    writer.write(piece[: most - passed])
                    await writer.drain()
                    return True
                passed += len(piece)
                writer.write(piece)
                await writer.drain()
        return False


@asynccontextmanager
async def cutting(target: str, *, cuts: int, most: int, seed: int) -> AsyncIterator[Cutter]:
    """A proxy at `url`; `most`: bytes of an answer before it is cut."""
    cutter = Cutter(target, cuts=cuts, most=most, seed=seed)
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(cutter.serve(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        cutter.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield cutter
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()
