"""Connections to Redis with bounds on number and time, and a fast command encoder."""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import hiredis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import (
    ConnectionError,  # noqa: A004 - redis-py's callers expect this class
    NoPermissionError,
    ResponseError,
)

from tandem_shared.queue.lookup import connection_options
from tandem_shared.queue.scripts import Arg
from tandem_shared.redis_url import parse_cluster_url


def pool(url: str, *, timeout: float = 5.0, connections: int = 32) -> BlockingConnectionPool:
    """At most `connections` that answer within `timeout` seconds, without redis-py's retries."""
    limits: dict[str, Any] = {
        "max_connections": connections,
        "timeout": timeout,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout / 2.5,
    }
    looked_up = connection_options(url)
    made: BlockingConnectionPool = (
        BlockingConnectionPool.from_url(url, **limits)
        if looked_up is None
        else BlockingConnectionPool(**limits, **looked_up)
    )
    # Every connection shares one RunId; `Repeats` finds it at the pool.
    shared = {"run_id": RunId(), "on_cluster": parse_cluster_url(url) is not None}
    bases = (_QueueConnection, made.connection_class)
    made.connection_class = type("QueueConnection", bases, shared)
    vars(made).update(shared)
    return made


class RunId:
    """Names the process that answers for Redis: another one may have lost its last seconds."""

    def __init__(self) -> None:
        self.on_change: list[Callable[[], None]] = []
        self._known = b""

    def met(self, found: bytes) -> None:
        """A new connection talks to this process. Raises ConnectionError if it is another one.

        So the call that has met it does not reach it before what may be lost is repeated.
        """
        changed, self._known = self._known and found != self._known, found
        if changed:
            for callback in self.on_change:
                callback()
            raise ConnectionError("another process answers for Redis")


class _QueueConnection:
    socket_timeout: float | None
    run_id: RunId
    on_cluster: bool  # the URL says so

    async def on_connect(self) -> None:
        """Reads the server's run id, before anything else is sent; a user may lack the right to."""
        connection: Any = self
        await super().on_connect()  # type: ignore[misc] # the class beside this one has it
        await connection.send_command("INFO", "server")
        with suppress(NoPermissionError):
            info = await connection.read_response()
            if b"redis_mode:cluster" in info and not self.on_cluster:
                raise ResponseError("MOVED to redis+cluster://")
            found = re.search(rb"run_id:(\w+)", info)
            if found is not None:
                self.run_id.met(found[1])

    # redis-py's asyncio client packs commands in Python, which takes seven times as long as this
    # for a script's arguments.
    def pack_command(self, *args: Arg) -> list[bytes]:
        words: Any = (*str(args[0]).split(), *args[1:])  # "SCRIPT FLUSH" is two words to Redis
        return [hiredis.pack_command(words)]

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        """Sends within the socket's timeout; raises ConnectionError if it was closed meanwhile.

        redis-py would send a command with a timeout through `wait_for`. That takes another task,
        and in Python 3.11 it swallows a cancellation that arrives as it ends.
        """
        limit, self.socket_timeout = self.socket_timeout, None
        try:
            async with asyncio.timeout(limit):
                await super().send_packed_command(*args, **options)  # type: ignore[misc] # the class beside this one has it
        except RuntimeError as error:  # uvloop's for a closed transport; redis-py does not catch it
            raise ConnectionError(str(error)) from error
        finally:
            self.socket_timeout = limit


def connect(url: str, *, timeout: float = 5.0, connections: int = 32) -> "Redis":
    """A client for the queue that owns its pool."""
    return Redis.from_pool(pool(url, timeout=timeout, connections=connections))
