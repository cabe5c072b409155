"""Redis comes back older than it was, while a worker runs: nothing is lost that the worker knew."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tandem_shared.jobs.states import State
from tandem_shared.queue import recent
from tandem_shared.retry_policy import RetryPolicy
from tandem_worker import task
from tandem_worker.jobs.job import Job
from tandem_worker.runtime import outbox
from tests.conftest import eventually
from tests.shared.queue.model.rollback import copy_keys, roll_back
from tests.worker.workers import Client, outcomes, working

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
        id = await client.submit(streaming.task)
        await streaming.first.wait()
        copy = await copy_keys(client.redis, prefix)
        streaming.go_first.set()
        await streaming.emitted.wait()
        await eventually(lambda: _has(client, id, 3))
        await roll_back(client.redis, prefix, copy)
        assert await client.items(id) == []
        streaming.go_on.set()
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


async def _has(client: Client, id: str, count: int) -> bool:
    return len(await client.items(id)) == count
