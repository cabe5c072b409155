"""The processes of a chaos run: each can be killed, stopped, terminated and restarted."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from redis.asyncio import Redis

from tandem_shared.dev.servers import die_with_parent, free_port, redis_server
from tests.chaos.journal import History, journaled
from tests.chaos.relay import Front, Relay, ready
from tests.postgres import postgres_server

ROOT = Path(__file__).parent.parent.parent
PREFIX = "tandem:{a}:"
LEASE_SECONDS = 2.0
DRAIN_SECONDS = 5.0
START_SECONDS = 180.0  # for everything, even on a busy machine
APIS, WORKERS = 2, 3
# libfaketime, with which the clocks of hosts are set; without it they stay right.
FAKETIME = next((path for path in Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)


class Process:
    """One process; its output is appended to a log file."""

    def __init__(
        self, name: str, argv: tuple[str, ...], environment: dict[str, str], log: Path
    ) -> None:
        self.name = name
        self._argv, self._environment, self._log = argv, environment, log
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._clock = log.with_suffix(".clock")

    def set_clock(self, days: int) -> None:
        """Put the clock of the process's host forward or, with a negative number, back."""
        self._clock.write_text(f"{days:+}d", encoding="utf-8")

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process, or restart it after it has ended."""
        if self._process is not None:
            self._process.communicate()
        self.set_clock(0)
        with self._log.open("ab") as log:
            self._process = self._popen(log)

    def _popen(self, log: IO[bytes]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            die_with_parent(self._argv),
            env=self._environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            process_group=0,
        )

    def send(self, number: signal.Signals) -> None:
        if self.alive:
            os.kill(self.pid, number)
            self._stopped = number is signal.SIGSTOP

    async def end(self, number: signal.Signals, timeout: float = 60.0) -> int | None:
        """Signal the process and wait until it exits; its exit code."""
        if self._process is None:
            return None
        if self._stopped:
            self.send(signal.SIGCONT)
        self.send(number)
        process = self._process
        async with asyncio.timeout(timeout):
            while process.poll() is None:
                await asyncio.sleep(0.02)
        process.communicate()
        return process.returncode


class Stage:
    """All processes, the relays between them, and their data.

    `settings` are added to the environment of the APIs and workers.
    """

    def __init__(
        self,
        directory: Path,
        *,
        fsync: str = "always",
        worker_module: str = "tandem_worker",
        apis: int = APIS,
        workers: int = WORKERS,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.effects = directory / "effects"
        self.history = History(directory)
        self.redis_socket = ""
        self.database = ""  # PostgreSQL's URL
        self.front = Front()
        self.to_redis = Relay(self._open_redis)
        self.redis: Process
        self.postgres: Process
        self.apis: list[Process] = []
        self.workers: list[Process] = []
        self.api_ports: list[int] = []
        self._fsync, self._worker_module = fsync, worker_module
        self._counts, self._settings = (apis, workers), settings or {}

    async def _open_redis(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.redis_socket)

    def client(self) -> Any:
        """A client of Redis that bypasses the relay."""
        return Redis(unix_socket_path=self.redis_socket, socket_timeout=5, decode_responses=True)

    async def open(self) -> None:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")
        }
        server = journaled(redis_server(self.directory))
        argv = (*server.argv, "--appendfsync", self._fsync)
        self.redis_socket = str(self.directory.resolve() / "redis.sock")
        self.redis = self._process("redis", argv, environment)
        self.redis.start()
        database = await asyncio.to_thread(postgres_server, self.directory)
        # Without synchronous_commit, a crash of PostgreSQL loses committed transactions.
        options = ("-c", "lock_timeout=5s", "-c", "synchronous_commit=on")
        database = replace(database, argv=(*database.argv, *options))
        self.database = database.url
        self.postgres = self._process("postgres", database.argv, environment)
        self.postgres.start()
        for store in (server, database):
            async with asyncio.timeout(START_SECONDS):
                while not await store.ready():
                    await asyncio.sleep(0.05)
        await self.to_redis.start()
        await self.front.start()
        environment |= {
            "CHAOS_EFFECTS": str(self.effects),
            "TANDEM_REDIS_URL": f"redis://127.0.0.1:{self.to_redis.port}/0",
            "TANDEM_STORE_URL": f"file://{self.directory}/store",
            "TANDEM_DATABASE_URL": self.database,
            "TANDEM_SQL__EFFECTS": f"{self.database}?mode=rw",
            "TANDEM_TASKS": "tests.chaos.work",
            "TANDEM_LEASE": f"{LEASE_SECONDS}s",
            "TANDEM_DRAIN": f"{DRAIN_SECONDS}s",
            "TANDEM_LINGER": "2s",
            "PYTHONUNBUFFERED": "1",
            **self._settings,
        }
        for number in range(self._counts[0]):
            port = free_port()
            self.api_ports.append(port)
            argv = (sys.executable, "-m", "tandem_api", "--port", str(port))
            self.apis.append(self._host(f"api-{number}", argv, environment))
            self.start_api(number)
        for number in range(self._counts[1]):
            argv = (sys.executable, "-m", *self._worker_module.split())
            self.workers.append(self._host(f"worker-{number}", argv, environment))
            self.workers[-1].start()
        async with asyncio.timeout(START_SECONDS):
            while (
                not all([await ready(port) for port in self.api_ports])
                or not await self._registered()
            ):
                await asyncio.sleep(0.05)

    async def _registered(self) -> bool:
        client = self.client()
        try:
            return int(await client.zcard(f"{PREFIX}workers")) >= self._counts[1]
        finally:
            await client.aclose()

    def _process(self, name: str, argv: tuple[str, ...], environment: dict[str, str]) -> Process:
        return Process(name, argv, environment, self.directory / f"{name}.log")

    def _host(self, name: str, argv: tuple[str, ...], environment: dict[str, str]) -> Process:
        """A process whose clock can be set."""
        clock = self.directory / f"{name}.clock"
        return self._process(name, argv, environment | _faketime(clock))

    def start_api(self, number: int) -> None:
        self.front.replicas[self.api_ports[number]] = False  # until /readyz says otherwise
        self.apis[number].start()

    def serves(self, process: Process) -> bool:
        """Whether an API is ready, or a worker has logged that it is."""
        if process in self.apis:
            return self.front.replicas[self.api_ports[self.apis.index(process)]]
        return any(f"-{process.pid}-" in line for line in self.logged("worker is ready"))

    @property
    def processes(self) -> list[Process]:
        return [*self.apis, *self.workers, self.redis, self.postgres]

    async def close(self) -> None:
        await self.front.close()
        await self.to_redis.close()
        for process in self.processes:
            await process.end(signal.SIGKILL)

    def logged(self, text: str) -> list[str]:
        """The lines of all logs that contain a text."""
        lines: list[str] = []
        for path in self.directory.glob("*.log"):
            lines += [
                f"{path.stem}: {line}"
                for line in path.read_text(errors="replace").splitlines()
                if text in line
            ]
        return lines


def _faketime(file: Path) -> dict[str, str]:
    """The environment in which a process reads how wrong its clock is from a file."""
    if FAKETIME is None:
        return {}
    return {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


@asynccontextmanager
async def open_stage(directory: Path, **options: Any) -> AsyncIterator[Stage]:
    stage = Stage(directory, **options)
    try:
        await stage.open()
        yield stage
    finally:
        await stage.close()
