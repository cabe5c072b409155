"""Cancelling a wait for a bell, at any moment."""

import asyncio

import pytest
from redis.asyncio import Redis

from tandem_shared.queue.connections import connect
from tandem_shared.queue.queue import Queue


@pytest.mark.parametrize("turns", range(16))
async def test_a_wait_can_be_cancelled_at_any_moment(
    redis: Redis, redis_url: str, turns: int
) -> None:
    # redis-py sends through `asyncio.wait_for`, which in Python 3.11 may swallow a cancellation.
    client = connect(redis_url)
    bells = Queue(client).bells("one")
    waiting = asyncio.create_task(bells.wait(60))
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.shield(waiting), 10)
    await bells.close()
    await client.aclose()
