"""Redis comes back older than it was, while a worker runs: nothing is lost that the worker knew."""

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tandem_shared.dev.servers import redis_server
from tandem_shared.errors import Unavailable
from tandem_shared.jobs.states import State
from tandem_shared.queue import recent
from tandem_shared.retry_policy import RetryPolicy
from tandem_worker import task
from tandem_worker.jobs.job import Job
from tandem_worker.runtime import outbox
from tests.conftest import eventually, started
from tests.shared.queue.model.rollback import copy_keys, roll_back
from tests.worker.workers import Client, open_client, outcomes, working

ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Redis accepts stays unsafe for as long as a test takes."""
    monkeypatch.setattr(recent, "SAFE_SECONDS", 3600.0)


class Streaming:
    """A task that emits `before` items, waits for the test, and emits `after` more."""

    def __init__(self, before: int, after: int) -> None:
        self.before, self.after = before, after
        self.emitted, self.go_on = asyncio.Event(), asyncio.Event()
        self.first, self.go_first = asyncio.Event(), asyncio.Event()
        self.begun: list[int] = []

    @property
    def task(self) -> Callable[..., Any]:
        @task("streams", retry=ONCE)
        async def streams(job: Job) -> int:
            self.begun.append(job.attempt)
            self.first.set()
            await self.go_first.wait()
            for n in range(self.before):
                await job.emit(n)
            self.emitted.set()
            await self.go_on.wait()
            for n in range(self.before, self.before + self.after):
                await job.emit(n)
            return self.before + self.after

        return streams


@pytest.mark.parametrize("after", [0, 3])
async def test_a_success_has_no_hole_in_its_output(
    client: Client, redis_url: str, tmp_path: Path, after: int
) -> None:
    streaming = Streaming(3, after)
    prefix = client.queue.prefix
    async with working(redis_url, tmp_path, streaming.task):
        # Claimed together, so that their attempts have one token.
        await client.queue.pause("default", on=True)
        ids = [await client.submit(streaming.task) for _ in range(2)]
        await client.queue.pause("default", on=False)
        await eventually(lambda: len(streaming.begun) == 2)
        copy = await copy_keys(client.redis, prefix)
        streaming.go_first.set()
        for id in ids:
            await eventually(partial(_has, client, id, 3))
        await roll_back(client.redis, prefix, copy)
        assert [await client.items(id) for id in ids] == [[], []]
        streaming.go_on.set()
        for id in ids:
            assert await client.result(id) == 3 + after
            assert await client.items(id) == list(range(3 + after))
            assert outcomes(await client.record(id)) == ["succeeded"]


@pytest.mark.parametrize("after", [0, 3])
async def test_a_job_whose_output_is_not_kept_runs_again_uncharged(
    client: Client,
    redis_url: str,
    tmp_path: Path,
    after: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbox, "RECENT_BYTES", 0)
    streaming = Streaming(3, after)
    prefix = client.queue.prefix
    async with working(redis_url, tmp_path, streaming.task):
        id = await client.submit(streaming.task)
        await streaming.first.wait()
        copy = await copy_keys(client.redis, prefix)
        streaming.go_first.set()
        await streaming.emitted.wait()
        await eventually(lambda: _has(client, id, 3))
        await roll_back(client.redis, prefix, copy)
        streaming.go_on.set()
        assert await client.result(id) == 3 + after
        record = await client.record(id)
        assert outcomes(record) == ["released", "succeeded"]
        assert streaming.begun == [1, 1]
        last = [
            chunk for chunk in await client.queue.output(id) if chunk.stamp > (record.began or 0)
        ]
        assert [item for chunk in last for item in chunk.items] == [
            b"%d" % n for n in range(3 + after)
        ]
        assert record.state is State.SUCCEEDED


async def test_a_success_that_was_accepted_stays(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    begun: list[int] = []

    @task("counts", retry=ONCE)
    async def counts(job: Job) -> int:
        begun.append(job.attempt)
        for n in range(3):
            await job.emit([len(begun), n])
        return len(begun)

    prefix = client.queue.prefix
    async with working(redis_url, tmp_path, counts) as worker:
        await client.queue.pause("default", on=True)
        id = await client.submit(counts)
        copy = await copy_keys(client.redis, prefix)
        await client.queue.pause("default", on=False)
        assert await client.result(id) == 1
        output = await client.queue.output(id)
        told = await client.record(id)
        await roll_back(client.redis, prefix, copy)
        assert not (await client.record(id)).done
        worker.queue.repeats.start()
        assert await client.result(id) == 1
        record = await client.record(id)
        assert (outcomes(record), begun) == (["succeeded"], [1])
        assert (record.began, record.attempts[0].worker) == (told.began, worker.id)
        assert await client.queue.output(id) == output
        assert record.stamp > told.stamp


async def test_a_success_goes_before_a_later_attempt(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    begun: list[int] = []
    second = asyncio.Event()

    @task("counts", retry=ONCE)
    async def counts(job: Job) -> int:
        begun.append(job.attempt)
        if len(begun) > 1:
            second.set()
            await asyncio.sleep(60)
        return len(begun)

    prefix = client.queue.prefix
    async with working(redis_url, tmp_path, counts) as worker:
        await client.queue.pause("default", on=True)
        id = await client.submit(counts)
        copy = await copy_keys(client.redis, prefix)
        await client.queue.pause("default", on=False)
        assert await client.result(id) == 1
        await roll_back(client.redis, prefix, copy)
        await client.queue.pause("default", on=False)
        await second.wait()
        worker.queue.repeats.start()
        assert await client.result(id) == 1
        assert outcomes(await client.record(id)) == ["released", "succeeded"]


async def test_an_attempt_goes_on_whose_claim_redis_has_forgotten(
    client: Client, redis_url: str, tmp_path: Path
) -> None:
    streaming = Streaming(3, 3)
    prefix = client.queue.prefix
    async with working(redis_url, tmp_path, streaming.task) as worker:
        await client.queue.pause("default", on=True)
        id = await client.submit(streaming.task)
        copy = await copy_keys(client.redis, prefix)
        await client.queue.pause("default", on=False)
        streaming.go_first.set()
        await streaming.emitted.wait()
        await eventually(lambda: _has(client, id, 3))
        token = worker.slots.leases.held[id][0]
        await roll_back(client.redis, prefix, copy)
        worker.control.heartbeat.beat()
        assert (await client.record(id)).state is State.RUNNING
        assert await client.redis.hget(f"{prefix}job:{id}", "token") == token.encode()
        streaming.go_on.set()
        assert await client.result(id) == 6
        assert await client.items(id) == list(range(6))
        assert (outcomes(await client.record(id)), streaming.begun) == (["succeeded"], [1])


class ServerThatForgets:
    """A Redis whose process comes back with its data as they were at `copy`."""

    def __init__(self, directory: Path) -> None:
        self.server = redis_server(directory)
        self._directory, self._copy = directory, directory / "copy"
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes]

    async def start(self) -> None:
        self._process = self._stack.enter_context(started(self.server))
        await eventually(self.server.ready)

    def copy(self) -> None:
        self._copy.mkdir()
        for path in self._directory.glob("appendonly*"):
            (shutil.copytree if path.is_dir() else shutil.copy)(path, self._copy / path.name)

    async def roll_back(self) -> None:
        self._process.kill()
        await asyncio.to_thread(self._process.wait, 10)
        for path in self._directory.glob("appendonly*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self._copy.iterdir():
            path.rename(self._directory / path.name)
        await self.start()

    def close(self) -> None:
        self._stack.close()


async def test_a_crash_of_redis_that_loses_its_last_writes_costs_nothing(tmp_path: Path) -> None:
    begun: list[int] = []

    @task("counts", retry=ONCE)
    async def counts(job: Job) -> int:
        begun.append(job.attempt)
        return len(begun)

    streaming = Streaming(3, 3)
    with tempfile.TemporaryDirectory(prefix="tandem-") as short, ExitStack() as stack:
        redis = ServerThatForgets(Path(short))
        stack.callback(redis.close)
        await redis.start()
        url = redis.server.url
        async with (
            open_client(url) as client,
            working(url, tmp_path, counts, streaming.task) as worker,
        ):
            # An answer means that the write is in the file that is copied.
            await client.redis.config_set("appendfsync", "always")
            await client.queue.tick()
            streams = await client.submit(streaming.task)
            await streaming.first.wait()
            redis.copy()
            streaming.go_first.set()
            await eventually(lambda: _has(client, streams, 3))
            done = await client.submit(counts)
            assert await client.result(done) == 1
            later = await client.submit(counts, delay=3600)
            dropped = await client.submit(counts, delay=3600)
            await client.queue.cancel(dropped)
            await redis.roll_back()

            async def known() -> bool:
                with suppress(Unavailable):
                    records = [await client.queue.get(id) for id in (done, later, dropped)]
                    return [one and one.state for one in records] == [
                        State.SUCCEEDED, State.SCHEDULED, State.CANCELLED,
                    ]  # fmt: skip
                return False

            await eventually(known)
            assert await client.result(done) == 1
            assert begun == [1]
            streaming.go_on.set()
            assert await client.result(streams) == 6
            assert await client.items(streams) == list(range(6))
            assert streaming.begun == [1]
            assert worker.jobs_failed == 0


async def _has(client: Client, id: str, count: int) -> bool:
    return len(await client.items(id)) == count
