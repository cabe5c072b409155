"""A client of the queue on an empty Redis."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tests.worker.workers import Client, open_client


@pytest.fixture
async def client(redis: Redis, redis_url: str) -> AsyncIterator[Client]:
    async with open_client(redis_url) as client:
        yield client
