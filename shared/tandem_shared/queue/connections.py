"""Connections to Redis: bounded, impatient, and quick at writing commands."""

import asyncio
from typing import Any

import hiredis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import ConnectionError  # noqa: A004 - redis-py's, as its callers expect

from tandem_shared.queue.scripts import Arg
from tandem_shared.queue.sentinel import connection_options
from tandem_shared.redis_url import watched


def pool(url: str, *, timeout: float = 5.0, connections: int = 32) -> BlockingConnectionPool:
    """Bounded connections, every answer within `timeout` seconds, no retries of redis-py's own."""
    limits: dict[str, Any] = {
        "max_connections": connections,
        "timeout": timeout,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout / 2.5,
    }
    found = watched(url)
    made: BlockingConnectionPool = (
        BlockingConnectionPool.from_url(url, **limits)
        if found is None
        else BlockingConnectionPool(**limits, **connection_options(found))
    )
    made.connection_class = type("Packed", (_Packed, made.connection_class), {})
    return made


class _Packed:
    socket_timeout: float | None

    # redis-py's asyncio client packs commands in Python, which takes seven times as long for a
    # script's arguments.
    def pack_command(self, *args: Arg) -> list[bytes]:
        words: Any = (*str(args[0]).split(), *args[1:])  # "SCRIPT FLUSH" is two words to Redis
        return [hiredis.pack_command(words)]

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        """Sends within the socket's timeout; a connection that was closed meanwhile is a ConnectionError.

        Given a timeout, redis-py sends through `wait_for`: a task more each time, and in Python
        3.11 a cancellation that comes as it ends is swallowed, so that whoever is to give up waits
        on.
        """
        limit, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(limit):
                await super().send_packed_command(*args, **options)  # type: ignore[misc] # the class beside this one has it
        except (
            RuntimeError
        ) as error:  # uvloop's word for a transport that is closed, which redis-py does not know
            raise ConnectionError(str(error)) from error
        finally:
            self.socket_timeout = limit


def connect(url: str, *, timeout: float = 5.0, connections: int = 32) -> "Redis":
    """A client for the queue, over a pool of its own."""
    return Redis.from_pool(pool(url, timeout=timeout, connections=connections))
