"""Doorbells: lists that a worker blocks on until there may be work. A bell is only a hint."""

import asyncio
import contextlib
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import Connection
from redis.exceptions import RedisError

from tandem_shared.queue.scripts import translate_errors

REPLY_MARGIN_SECONDS = 3.0  # an answer may take this much longer than the blocking time


async def open_connection(redis: "Redis", timeout: float) -> Connection:
    """A dedicated connection, outside the pool, for blocking commands and subscriptions."""
    made: Any = redis.connection_pool.make_connection()  # type: ignore[no-untyped-call] # untyped in redis-py
    made.socket_timeout = None  # every caller sets a timeout per read
    async with asyncio.timeout(timeout):
        await made.connect()
    connection: Connection = made
    return connection


class Bells:
    """A dedicated connection for one blocking wait at a time, reopened after any fault."""

    def __init__(self, redis: "Redis", prefix: str, names: tuple[str, ...]) -> None:
        self._redis = redis
        self._keys = tuple(f"{prefix}bell:{name}" for name in names)
        self._connection: Connection | None = None

    async def wait(self, block: float) -> str | None:
        """The word that was rung, or None after `block` seconds. Raises Unavailable if Redis fails.

        Cancelling the wait closes the connection, since an answer may still arrive on it.
        """
        try:
            with translate_errors():
                answer = await self._wait(block)
        except BaseException:
            await self.close()
            raise
        return answer[1].decode() if answer else None

    async def _wait(self, block: float) -> Any:
        if self._connection is None:
            self._connection = await open_connection(self._redis, REPLY_MARGIN_SECONDS)
        timeout = block + REPLY_MARGIN_SECONDS
        async with asyncio.timeout(timeout):
            await self._connection.send_command("BLPOP", *self._keys, f"{max(block, 0.01):.3f}")
            return await self._connection.read_response(
                timeout=10 * timeout, disconnect_on_error=False
            )

    async def close(self) -> None:
        """Closes the connection without waiting for an answer."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await connection.disconnect(nowait=True)
