"""The doorbells' connection: a word comes, silence ends, a cancellation is obeyed at whatever moment it comes."""

import asyncio

import pytest
from redis.asyncio import Redis

from shared.errors import Unavailable
from shared.queue import Queue, connect


async def test_a_word_and_silence(redis: Redis) -> None:
    queue = Queue(redis)
    bells = queue.bells("one", "two")
    try:
        assert await bells.wait(0.01) is None
        await redis.rpush(f"{queue.prefix}bell:two", "cancel x")
        assert await bells.wait(10) == "cancel x"
    finally:
        await bells.close()


@pytest.mark.parametrize("turns", range(16))
async def test_a_cancellation_is_obeyed_at_every_moment(redis: Redis, redis_url: str, turns: int) -> None:
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


async def test_nobody_there_is_unavailable() -> None:
    client = connect("unix:///nowhere/redis.sock")
    with pytest.raises(Unavailable):
        await Queue(client).bells("one").wait(1)
    await client.aclose()
