"""The queue, with a clock that the test turns; after each test every law of the queue must hold."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tests.shared.shard import Shard, broken


@pytest.fixture
async def shard(redis: Redis) -> AsyncIterator[Shard]:
    """An empty shard at noon, where ticks have gone on for long enough that no grace holds."""
    made = Shard(redis)
    await made.turn(0)
    await made.silence()
    yield made
    left = await made.snapshot()
    await made.queue.close()
    assert not broken(left)
