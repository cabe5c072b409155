"""The API behind a real server; the test plays the worker."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from redis.asyncio import Redis

from tandem_shared.queue.queue import Queue
from tests.api.fake_worker import ANY, STRICT, FakeWorker
from tests.api.serving import serving


@pytest.fixture
async def queue(redis: Redis) -> AsyncIterator[Queue]:
    queue = Queue(redis)
    yield queue
    await queue.close()


@pytest.fixture
async def worker(queue: Queue) -> FakeWorker:
    worker = FakeWorker(queue)
    await worker.publish(ANY, STRICT)
    return worker


@pytest.fixture
async def client(
    redis_url: str, worker: FakeWorker, tmp_path: Path
) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(redis_url, tmp_path) as client:
        yield client
