"""Streams larger than Redis may hold, while readers are cut off and processes are killed."""

import asyncio
import hashlib
import random
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import httpx2
import msgspec
import pytest

from tandem_shared.dev.servers import die_with_parent, free_port
from tandem_shared.jobs.states import State
from tandem_shared.queue.queue import MAX_TAIL_BYTES
from tests.conftest import eventually
from tests.journeys.stage import ROOT, WorkerStage, until_registered
from tests.journeys.tasks import stream_tasks as tasks
from tests.worker.workers import Client, outcomes

MIB = 1 << 20


class Replicas:
    """API processes that share a Redis."""

    def __init__(self, stage: WorkerStage) -> None:
        self.stage = stage
        self.ports: dict[int, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()

    async def start(self) -> int:
        """Start another API; its port."""
        port = free_port()
        environment = {
            "TANDEM_REDIS_URL": self.stage.server.url,
            "TANDEM_STORE_URL": f"file://{self.stage.directory}/store",
            "TANDEM_PORT": str(port),
            "PATH": "/usr/bin:/bin",
        }
        process = self._stack.enter_context(
            subprocess.Popen(
                die_with_parent([sys.executable, "-m", "tandem_api"]),
                env=environment,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
        )
        self._stack.callback(process.communicate)
        self._stack.callback(process.kill)
        self.ports[port] = process

        async def is_serving() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            return True

        await eventually(is_serving, 30)
        return port

    def kill(self, port: int) -> None:
        self.ports.pop(port).kill()

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def replicas(stage: WorkerStage) -> Iterator[Replicas]:
    replicas = Replicas(stage)
    yield replicas
    replicas.close()


@pytest.fixture
async def client(client: Client, stage: WorkerStage) -> Client:
    """A client of the stage's queue, which has a worker."""
    stage.worker(tasks=tasks.__name__)
    await until_registered(client, 1)
    return client


async def lines(
    port: int, id: str, after: str | None = None, *, slow: asyncio.Event | None = None
) -> AsyncGenerator[bytes, None]:
    """The entries of one connection. With `slow`, wait for the event after each entry."""
    url = f"http://127.0.0.1:{port}/v1/jobs/{id}/stream"
    headers = {"Accept": "application/x-ndjson"}
    query = {"types": "output"} | ({"after": after} if after else {})
    async with httpx2.AsyncClient(trust_env=False, timeout=60) as client:
        with suppress(httpx2.TransportError):
            async with client.stream("GET", url, params=query, headers=headers) as answer:
                assert answer.status_code == 200
                rest = b""
                async for data in answer.aiter_raw():
                    *complete, rest = (rest + data).split(b"\n")
                    for line in filter(None, complete):
                        yield line
                        if slow is not None:
                            await slow.wait()


class Entry(msgspec.Struct):
    id: str
    type: str
    attempt: int
    data: msgspec.Raw


_entry = msgspec.json.Decoder(Entry)


async def digest(entries: AsyncIterator[bytes]) -> str:
    """The hash of the last attempt's items. Fails unless the stream is complete."""
    found, attempt, last = hashlib.sha256(), 0, None
    async for line in entries:
        last = _entry.decode(line)
        if last.type == "output":
            if last.attempt > attempt:
                attempt, found = last.attempt, hashlib.sha256()
            assert last.attempt == attempt
            found.update(bytes(last.data))
    assert last is not None
    assert last.type == "end"
    return found.hexdigest()


def expected(stream: tasks.Stream) -> str:
    found = hashlib.sha256()
    for item in tasks.generate(stream):
        found.update(item)
    return found.hexdigest()


async def test_fast_and_slow_readers_get_everything_while_redis_holds_little(
    stage: WorkerStage, client: Client, replicas: Replicas
) -> None:
    port = await replicas.start()
    stream = tasks.Stream(items=800, size=64 << 10)  # 52 MB
    id = await client.submit(tasks.items, stream.model_dump(mode="json"))
    go_on = asyncio.Event()
    fast = asyncio.create_task(digest(lines(port, id)))
    slow = asyncio.create_task(digest(lines(port, id, slow=go_on)))
    max_bytes = 0

    async def has_ended() -> bool:
        nonlocal max_bytes
        key = f"{client.queue.prefix}out:{id}"
        max_bytes = max(max_bytes, int(await client.redis.memory_usage(key, samples=0) or 0))
        return fast.done()

    await eventually(has_ended, 60)
    assert await fast == expected(stream)
    assert not slow.done()
    assert (await client.record(id)).state is State.SUCCEEDED, "the job waited for the slow reader"
    assert 0 < max_bytes < MAX_TAIL_BYTES + 2 * MIB
    go_on.set()
    assert await slow == expected(stream)


async def test_a_stream_survives_a_killed_worker(
    stage: WorkerStage, client: Client, replicas: Replicas
) -> None:
    port = await replicas.start()
    # The worker is killed after 8 MB.
    stream = tasks.Stream(items=200, size=64 << 10, halt=120, go=stage.directory / "go")
    id = await client.submit(tasks.items, stream.model_dump(mode="json"))
    reading = asyncio.create_task(digest(lines(port, id)))
    await eventually(lambda: client.queue.segments(id), 30)
    (worker,) = stage.workers
    worker.send_signal(signal.SIGKILL)
    stage.go()
    stage.worker(tasks=tasks.__name__)
    assert await client.result(id) == 2
    assert outcomes(await client.record(id)) == ["worker_lost", "succeeded"]
    assert await reading == expected(stream)
    assert await digest(lines(port, id)) == expected(stream), "a later reader gets something else"


async def test_fifty_cuts_and_a_killed_replica_lose_nothing(
    stage: WorkerStage, client: Client, replicas: Replicas
) -> None:
    ports = [await replicas.start(), await replicas.start()]
    stream = tasks.Stream(items=1600, size=8 << 10, halt=1000, go=stage.directory / "go")  # 13 MB
    id = await client.submit(tasks.items, stream.model_dump(mode="json"))
    dice = random.Random(4)
    received: list[Any] = []
    for cut in range(50):
        if cut == 15:
            replicas.kill(ports.pop(0))
        if cut == 25:
            stage.go()
        # At max_bytes 750 before the job goes on and 1,500 in all: less than there is.
        count = dice.randint(0, 30)
        connection = lines(dice.choice(ports), id, received[-1][0] if received else None)
        while count and (line := await anext(connection, None)) is not None:
            entry = _entry.decode(line)
            received.append((entry.id, entry.type, bytes(entry.data)))
            count -= 1
        await connection.aclose()
    async for line in lines(ports[0], id, received[-1][0]):
        entry = _entry.decode(line)
        received.append((entry.id, entry.type, bytes(entry.data)))
    assert received.pop()[1] == "end"
    assert [data for _, _, data in received] == list(tasks.generate(stream))
    assert [id for id, _, _ in received] == sorted({id for id, _, _ in received})
    assert await client.queue.segments(id), "nothing came from the file store"
