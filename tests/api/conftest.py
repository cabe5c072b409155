"""The API behind a real server, with a worker's part that the test plays itself."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from redis.asyncio import Redis

from tandem_shared.queue.queue import Queue
from tests.api.fake_worker import ANY, STRICT, Hand
from tests.api.serving import serving


@pytest.fixture
async def queue(redis: Redis) -> AsyncIterator[Queue]:
    queue = Queue(redis)
    yield queue
    await queue.close()


@pytest.fixture
async def hand(queue: Queue) -> Hand:
    hand = Hand(queue)
    await hand.publish(ANY, STRICT)
    return hand


@pytest.fixture
async def client(redis_url: str, hand: Hand, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(redis_url, tmp_path) as client:
        yield client
