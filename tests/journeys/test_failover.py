"""Redis Sentinel fails over to a replica while jobs wait and run: real servers, API and worker."""

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
    Server,
    die_with_parent,
    free_port,
    redis_program,
    redis_server,
)
from tests.api.server.test_supervisor import address, api, ready
from tests.conftest import eventually, started
from tests.journeys.tasks import crash_tasks as tasks
from tests.journeys.test_crashes import ROOT

SENTINELS = 3


class Watched:
    """A master, its replica, and sentinels that fail over after half a second of silence."""

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
            options = [
                "--port",
                str(port),
                "--bind",
                "127.0.0.1",
                "--repl-diskless-sync-delay",
                "0",
            ]
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
            await self._start(Server("sentinel", (program, str(settings), "--sentinel"), "", _yes))
        for index in range(2, 2 + SENTINELS):
            await eventually(partial(self._knows, index), 30)

    async def _start(self, server: Server) -> None:
        self.processes.append(self._stack.enter_context(started(server)))

    async def _knows(self, index: int) -> bool:
        """Whether this sentinel knows the others, and a replica that is up to date."""
        client = self.client(index)
        try:
            state: dict[str, Any] = await client.sentinel_master("main")  # type: ignore[no-untyped-call] # redis-py
            replicas: Any = await client.sentinel_slaves("main")  # type: ignore[no-untyped-call] # redis-py
        except OSError:
            return False
        except Exception as error:  # noqa: BLE001 - redis-py wraps the refusal of a server that is about to listen
            return not error
        finally:
            await client.aclose()
        linked = [one for one in replicas if one["master-link-status"] == "ok"]
        return state["num-other-sentinels"] == SENTINELS - 1 and len(linked) == 1

    def close(self) -> None:
        self._stack.close()


async def _yes() -> bool:
    return True


@pytest.fixture
def watched(short_path: Path) -> Iterator[Watched]:
    with closing(Watched(short_path)) as servers:
        yield servers


@contextmanager
def worker(url: str, folder: Path) -> Iterator[None]:
    """A worker process on this Redis, killed at the end."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")},
        "TANDEM_REDIS_URL": url,
        "TANDEM_STORE_URL": f"file://{folder}/store",
        "TANDEM_TASKS": tasks.__name__,
        "TANDEM_LEASE": "2s",
    }
    with (
        (folder / "worker.log").open("wb") as log,
        subprocess.Popen(
            die_with_parent([sys.executable, "-m", "tandem_worker"]),
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            process_group=0,
        ) as process,
    ):
        try:
            yield
        finally:
            process.kill()
            process.communicate()


async def submit(client: httpx2.AsyncClient, task: str, payload: Any, **options: Any) -> str:
    """Submit a job, repeating the request while the answer is 503; its id."""
    body = {"task": task, "payload": payload, "options": options}
    headers = {"Idempotency-Key": os.urandom(8).hex()}

    async def accepted() -> str:
        answer = await client.post("/v1/jobs", json=body, headers=headers)
        assert answer.status_code in (202, 503), answer.text
        return str(answer.json()["id"]) if answer.status_code == 202 else ""

    return await eventually(accepted, 60)


async def succeeded(client: httpx2.AsyncClient, ids: list[str]) -> bool:
    answers = [await client.get(f"/v1/jobs/{id}") for id in ids]
    return all(
        answer.status_code == 200 and answer.json()["state"] == "succeeded" for answer in answers
    )


async def replicated(watched: Watched) -> None:
    """Wait until the replica has everything that the master has."""
    master = watched.client(0)
    # WAIT covers what its own connection has written, and so everything written before that.
    await master.set("last", 1)
    assert await master.wait(1, 10_000) == 1
    await master.aclose()


async def test_a_failover_loses_nothing_that_was_replicated(
    watched: Watched, tmp_path: Path
) -> None:
    await watched.start()
    payload = {"notes": str(tmp_path / "notes"), "go": str(tmp_path / "go")}
    retry = {"max_attempts": 20, "base": "10ms", "jitter": False}
    with worker(watched.url, tmp_path):
        async with api(tmp_path, watched.url, "--port", "0", TANDEM_LEASE="2s") as process:
            url = await address(process)
            await ready(url)
            async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
                await eventually(lambda: _known(client), 30)
                ids = [
                    await submit(client, "crash.waits", payload, timeout="2m", retry=retry)
                    for _ in range(10)
                ]
                ids += [await submit(client, "crash.quick", 1, delay="3s") for _ in range(20)]
                await eventually((tmp_path / "notes").exists)
                await replicated(watched)
                watched.processes[0].kill()
                # These are accepted once there is a master again.
                ids += [await submit(client, "crash.quick", 2) for _ in range(20)]
                (tmp_path / "go").touch()
                await eventually(lambda: succeeded(client, ids), 60)


async def _known(client: httpx2.AsyncClient) -> bool:
    return (await client.get("/v1/tasks/crash.waits")).status_code == 200
