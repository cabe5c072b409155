"""Cancelling a call to Redis, at any moment."""

import asyncio

import pytest

from tandem_shared.queue.connections import connect
from tandem_shared.queue.queue import Queue

CALL_TURNS = 60  # of the event loop, more than a call takes


@pytest.mark.parametrize("turns", range(0, CALL_TURNS, 6))
async def test_no_cancellation_is_swallowed(redis_url: str, turns: int) -> None:
    redis = connect(redis_url)
    queue = Queue(redis)
    try:

        async def forever() -> None:
            while True:
                await queue.tick()

        for later in range(20 * 6):
            calls = asyncio.create_task(forever())
            for _ in range(turns + later % 6):
                await asyncio.sleep(0)
            calls.cancel()  # once
            await asyncio.wait({calls}, timeout=20)
            assert calls.cancelled()
    finally:
        await queue.close()
        await redis.aclose()
