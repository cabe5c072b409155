"""Redis Sentinel fails over to a replica while jobs wait and run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

from tandem_shared.dev.servers import (
    LocalServer,
    die_with_parent,
    free_port,
    redis_program,
    redis_server,
)
from tests.api.server.test_supervisor import address, api, ready
from tests.conftest import eventually, started
from tests.journeys.stage import ROOT
from tests.journeys.tasks import crash_tasks as tasks

SENTINELS = 3


class ReplicatedRedis:
    """A master, its replica, and sentinels that fail over half a second after its last answer."""

    def __init__(self, directory: Path) -> None:
        self.ports = [free_port() for _ in range(2 + SENTINELS)]
        self.directory = directory
        self.processes: list[subprocess.Popen[bytes]] = []
        self._stack = ExitStack()

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.ports[2:])}/main/0"

    def client(self, index: int) -> "Redis":
        return Redis(
            port=self.ports[index],
            socket_timeout=5,
            socket_connect_timeout=5,
            decode_responses=True,
        )

    async def start(self) -> None:
        for index, port in enumerate(self.ports[:2]):
            home = self.directory / str(index)
            home.mkdir()
            server = redis_server(home)
            options = ["--port", str(port), "--bind", "127.0.0.1"]
            options += ["--repl-diskless-sync-delay", "0"]
            options += ["--replicaof", "127.0.0.1", str(self.ports[0])] if index else []
            await self._start(replace(server, argv=(*server.argv, *options)))
        program = str(redis_program())
        for port in self.ports[2:]:
            settings = self.directory / f"{port}.conf"
            settings.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {self.directory}\n"
                f"sentinel monitor main 127.0.0.1 {self.ports[0]} 2\n"
                "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 5000\n"
            )
            await self._start(
                LocalServer("sentinel", (program, str(settings), "--sentinel"), "", _yes)
            )
        for index in range(2, 2 + SENTINELS):
            await eventually(partial(self._knows, index), 30)

    async def _start(self, server: LocalServer) -> None:
        self.processes.append(self._stack.enter_context(started(server)))

    async def _knows(self, index: int) -> bool:
        """Whether a sentinel knows the other sentinels and a replica that is up to date."""
        client = self.client(index)
        try:
            state: dict[str, Any] = await client.sentinel_master("main")  # type: ignore[no-untyped-call] # redis-py
            replicas: Any = await client.sentinel_slaves("main")  # type: ignore[no-untyped-call] # redis-py
        except OSError:
            return False
        except Exception as error:  # noqa: BLE001 - redis-py wraps the refusal of a starting server
            return not error
        finally:
            await client.aclose()
        linked = [replica for replica in replicas if replica["master-link-status"] == "ok"]
        return state["num-other-sentinels"] == SENTINELS - 1 and len(linked) == 1

    async def replicate(self) -> None:
        """Wait until the replica has everything that the master has."""
        master = self.client(0)
        await master.set(
            "last", 1
        )  # WAIT covers what was written up to its connection's last write
        assert await master.wait(1, 10_000) == 1
        await master.aclose()

    def close(self) -> None:
        self._stack.close()


async def _yes() -> bool:
    return True


@pytest.fixture
def replicated(short_path: Path) -> Iterator[ReplicatedRedis]:
    with closing(ReplicatedRedis(short_path)) as servers:
        yield servers


class Submitter:
    """Submits jobs over HTTP, however long that takes."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self.ids: list[str] = []

    async def submit(self, count: int, task: str, payload: Any, **options: Any) -> None:
        body = {"task": task, "payload": payload, "options": options}
        for _ in range(count):
            # The key makes repeats safe.
            accept = partial(self._accept, body, {"Idempotency-Key": os.urandom(8).hex()})
            self.ids.append(await eventually(accept, 60))

    async def _accept(self, body: dict[str, Any], headers: dict[str, str]) -> str:
        answer = await self._client.post("/v1/jobs", json=body, headers=headers)
        assert answer.status_code in (202, 503), answer.text
        return str(answer.json().get("id", "")) if answer.status_code == 202 else ""

    async def knows_task(self) -> bool:
        return (await self._client.get("/v1/tasks/crash.waits")).status_code == 200

    async def is_done(self) -> bool:
        """Whether all jobs have succeeded."""
        answers = [await self._client.get(f"/v1/jobs/{id}") for id in self.ids]
        return all(
            answer.status_code == 200 and answer.json()["state"] == "succeeded"
            for answer in answers
        )


@contextmanager
def running_worker(directory: Path, redis_url: str) -> Iterator[None]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")},
        "TANDEM_REDIS_URL": redis_url,
        "TANDEM_STORE_URL": f"file://{directory}/store",
        "TANDEM_TASKS": tasks.__name__,
        "TANDEM_LEASE": "2s",
    }
    with (directory / "worker.log").open("wb") as log:
        worker = subprocess.Popen(
            die_with_parent([sys.executable, "-m", "tandem_worker"]),
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            process_group=0,
        )
    try:
        yield
    finally:
        worker.kill()
        worker.communicate()


async def test_a_failover_loses_nothing_that_was_replicated(
    replicated: ReplicatedRedis, tmp_path: Path
) -> None:
    await replicated.start()
    scene = {"notes": str(tmp_path / "notes"), "go": str(tmp_path / "go")}
    retry = {"max_attempts": 20, "base": "10ms", "jitter": False}
    with running_worker(tmp_path, replicated.url):
        async with api(tmp_path, replicated.url, "--port", "0", TANDEM_LEASE="2s") as process:
            url = await address(process)
            await ready(url)
            async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
                jobs = Submitter(client)
                await eventually(jobs.knows_task, 30)
                await jobs.submit(10, "crash.waits", scene, timeout="2m", retry=retry)
                await jobs.submit(20, "crash.quick", 1, delay="3s")
                await eventually((tmp_path / "notes").exists)
                await replicated.replicate()
                replicated.processes[0].kill()
                await jobs.submit(20, "crash.quick", 2)
                (tmp_path / "go").touch()
                await eventually(jobs.is_done, 60)
