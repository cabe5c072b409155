"""News of jobs: one pub/sub connection a process, however many wait.

A message says only that something changed: who waits reads again. So nothing is lost when one is: after each
(re)subscription, and every 5 s in any case, everybody reads again.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from redis.asyncio import Redis
from redis.asyncio.connection import Connection
from redis.exceptions import RedisError

from shared.queue.bells import open_connection

AGAIN = 5.0  # seconds after which who waits reads again, and the connection is pinged


class Change:
    """One reader's interest in one job."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def mark(self) -> None:
        """Something changed, or may have."""
        self._event.set()

    async def wait(self, timeout: float = AGAIN) -> None:
        """Returns at the next change, or after `timeout` seconds, at most 5: then read again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(timeout, AGAIN))):
                await self._event.wait()
        self._event.clear()


class Watch:
    """The watched jobs of this process, and the connection that brings their news. `close` ends it."""

    def __init__(self, redis: "Redis", prefix: str) -> None:
        self._redis, self._prefix = redis, prefix
        self._changes: dict[str, set[Change]] = {}
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def job(self, id: str) -> AsyncIterator[Change]:
        """A change that is marked whenever the job changes, first when its news are certain to arrive."""
        change = Change()
        watchers = self._changes.setdefault(id, set())
        watchers.add(change)
        try:
            if self._task is None:
                self._task = asyncio.create_task(self._listen(), name="watch")
            elif len(watchers) == 1:
                await self._say("SUBSCRIBE", id)
            yield change
        finally:
            watchers.discard(change)
            if not watchers and self._changes.get(id) is watchers:
                del self._changes[id]
                await self._say("UNSUBSCRIBE", id)

    async def _say(self, command: str, *ids: str) -> None:
        connection = self._connection
        if connection is None or not ids:
            return  # the next connection subscribes to all that is then watched
        with contextlib.suppress(RedisError, OSError, TimeoutError):  # the listener meets the same fault and reconnects
            async with self._sending, asyncio.timeout(AGAIN):
                await connection.send_command(command, *(f"{self._prefix}news:{id}" for id in ids))

    async def _listen(self) -> None:
        delay = 0.05
        while True:
            try:
                self._connection = connection = await open_connection(self._redis, AGAIN)
                async with asyncio.timeout(AGAIN):
                    await connection.send_command("SUBSCRIBE", f"{self._prefix}news", *self._channels())
                self._mark_all()
                delay = 0.05
                await self._read(connection)
            except (RedisError, OSError, TimeoutError):
                self._mark_all()
                await asyncio.sleep(delay)
                delay = min(2 * delay, 1.0)
            finally:
                if self._connection is not None:
                    with contextlib.suppress(RedisError, OSError, TimeoutError):
                        await self._connection.disconnect(nowait=True)
                    self._connection = None

    def _channels(self) -> list[str]:
        return [f"{self._prefix}news:{id}" for id in self._changes]

    async def _read(self, connection: Connection) -> None:
        silent = 0
        skip = len(f"{self._prefix}news:")
        while True:
            try:
                async with asyncio.timeout(AGAIN):
                    message = await connection.read_response(timeout=10 * AGAIN, disconnect_on_error=False)
            except TimeoutError:
                silent += 1
                if silent > 1:
                    raise  # the ping brought nothing: the connection is dead
                async with self._sending, asyncio.timeout(AGAIN):
                    await connection.send_command("PING")
                continue
            silent = 0
            # ["message" | "subscribe" | "unsubscribe", channel, …] or ["pong", …]
            if isinstance(message, list) and message[0] in (b"message", b"subscribe"):
                for change in self._changes.get(message[1].decode()[skip:], ()):
                    change.mark()

    def _mark_all(self) -> None:
        for watchers in self._changes.values():
            for change in watchers:
                change.mark()

    async def close(self) -> None:
        """Ends the connection; whoever still waits reads again."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._mark_all()
