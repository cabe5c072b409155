"""Redis' time, which dates everything that processes on different hosts must agree about."""

import time
from typing import Any

from redis.asyncio import Redis

from tandem_shared.errors import Unavailable
from tandem_shared.queue.scripts import translate_errors


class RedisClock:
    """Redis' clock as this process knows it: asked by `sync`, counted on by the monotonic clock.

    So a host whose clock is wrong, or is set while the process runs, changes nothing.
    """

    def __init__(self, redis: "Redis") -> None:
        self._redis: Any = redis
        self._offset: float | None = None  # from the monotonic clock to Redis' clock

    def now(self) -> float:
        """Seconds since the epoch. Raises Unavailable before the first `sync`."""
        if self._offset is None:
            raise Unavailable("Redis has not answered since this process started")
        return time.monotonic() + self._offset

    async def sync(self) -> float:
        """Asks Redis and returns its time. Raises Unavailable."""
        sent = time.monotonic()
        with translate_errors():
            seconds, micros = await self._redis.time()
        now = float(seconds + micros / 1e6)
        self._offset = now - (sent + time.monotonic()) / 2
        return now

    async def earliest(self) -> float:
        """Redis' time or this host's, whichever is earlier: by it, old data may be deleted.

        A step of either clock then deletes nothing early. Raises Unavailable.
        """
        return min(await self.sync(), time.time())
