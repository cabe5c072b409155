"""A shard's keys as they were, so that a Redis that lost its last seconds can be played."""

from collections.abc import Mapping
from typing import Any

Copy = Mapping[bytes, tuple[bytes, int]]  # by key: what DUMP returns, and the TTL in ms or 0


async def copy_keys(redis: Any, prefix: str) -> Copy:
    """All keys under the prefix now, except the clock that a test turns."""
    keys = [key async for key in redis.scan_iter(f"{prefix}*", count=1000)]
    pipe = redis.pipeline(transaction=True)
    for key in keys:
        pipe.dump(key)
        pipe.pttl(key)
    found = await pipe.execute()
    return {
        key: (body, max(0, ttl))
        for key, body, ttl in zip(keys, found[::2], found[1::2], strict=True)
        if body is not None and key != _clock(prefix)
    }


async def roll_back(redis: Any, prefix: str, copy: Copy) -> None:
    """Redis has the keys of the copy again, and no others."""
    keys = [key async for key in redis.scan_iter(f"{prefix}*", count=1000)]
    pipe = redis.pipeline(transaction=True)
    for key in keys:
        if key != _clock(prefix):
            pipe.delete(key)
    for key, (body, ttl) in copy.items():
        pipe.restore(key, ttl, body, replace=True)
    await pipe.execute()


def _clock(prefix: str) -> bytes:
    return f"{prefix}now".encode()
