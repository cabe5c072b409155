"""News of jobs: one pub/sub connection a process, however many wait.

A message says only that something changed: who waits reads again. So nothing is lost when one is:
after each (re)subscription everybody reads again, and every 5 s one look at the versions of all
watched records finds those whose news did not arrive.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from redis.asyncio import Redis
from redis.asyncio.connection import Connection
from redis.exceptions import RedisError

from tandem_shared.backoff import Backoff
from tandem_shared.queue.bells import open_connection

AGAIN = 5.0  # seconds between two pings of the connection
LOOK = 5.0  # seconds in which every watched record is looked at once
PORTION = 500  # jobs in one command or pipeline


class Change:
    """One reader's interest in one job."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def mark(self) -> None:
        """Something changed, or may have."""
        self._event.set()

    async def wait(self, timeout: float | None = AGAIN) -> bool:
        """Whether it was marked, at once or within `timeout` seconds: then read again."""
        if not self._event.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._event.wait()
        marked = self._event.is_set()
        self._event.clear()
        return marked


class Watch:
    """The watched jobs of this process, and the connection that brings their news. `close` ends it."""

    def __init__(self, redis: "Redis", prefix: str) -> None:
        self._redis, self._prefix = redis, prefix
        self._changes: dict[str, set[Change]] = {}
        self._connection: Connection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._wanted: dict[str, str] = {}  # commands that have not been sent, by job
        self._saying: asyncio.Task[None] | None = None
        self._seen: dict[str, list[bytes | None]] = {}  # versions at the last look
        self._sending = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def job(self, id: str) -> AsyncIterator[Change]:
        """A change that is marked whenever the job changes, first when its news are certain to arrive."""
        change = Change()
        watchers = self._changes.setdefault(id, set())
        watchers.add(change)
        try:
            if not self._tasks:
                self._tasks = [
                    asyncio.create_task(self._listen(), name="watch"),
                    asyncio.create_task(self._look(), name="look"),
                ]
            elif len(watchers) == 1:
                self._say("SUBSCRIBE", id)
            yield change
        finally:
            watchers.discard(change)
            if not watchers and self._changes.get(id) is watchers:
                del self._changes[id]
                self._seen.pop(id, None)
                self._say("UNSUBSCRIBE", id)

    def _say(self, command: str, id: str) -> None:
        self._wanted[id] = command  # the last word on a job counts
        if self._saying is None or self._saying.done():
            self._saying = asyncio.create_task(self._say_wanted(), name="subscribe")

    async def _say_wanted(self) -> None:
        """Sends what was said in one turn of the event loop in few commands: many come and go together."""
        while self._wanted:
            wanted, self._wanted = self._wanted, {}
            for command in ("UNSUBSCRIBE", "SUBSCRIBE"):
                names = [
                    f"{self._prefix}news:{id}" for id, last in wanted.items() if last == command
                ]
                for start in range(0, len(names), PORTION):
                    await self._send(command, names[start : start + PORTION])

    async def _send(self, command: str, names: list[str]) -> None:
        connection = self._connection
        if connection is None:
            return  # the next connection subscribes to all that is then watched
        with contextlib.suppress(
            RedisError, OSError, TimeoutError
        ):  # the listener meets the same fault and reconnects
            async with self._sending, asyncio.timeout(AGAIN):
                await connection.send_command(command, *names)

    async def _listen(self) -> None:
        backoff = Backoff(max_seconds=1.0)
        while True:
            try:
                self._connection = connection = await open_connection(self._redis, AGAIN)
                async with asyncio.timeout(AGAIN):
                    await connection.send_command(
                        "SUBSCRIBE", f"{self._prefix}news", *self._channels()
                    )
                self._mark_all()
                backoff.reset()
                await self._read(connection)
            except (RedisError, OSError, TimeoutError):
                self._mark_all()
                await backoff.sleep()
            finally:
                if self._connection is not None:
                    with contextlib.suppress(RedisError, OSError, TimeoutError):
                        await self._connection.disconnect(nowait=True)
                    self._connection = None

    async def _look(self) -> None:
        """Finds what changed without our hearing of it; who has just come is marked in any case."""
        while True:
            ids = list(self._changes)
            portions = max(1, -(-len(ids) // PORTION))
            for start in range(0, portions * PORTION, PORTION):
                await asyncio.sleep(LOOK / portions)
                portion = [id for id in ids[start : start + PORTION] if id in self._changes]
                with contextlib.suppress(
                    RedisError, OSError, TimeoutError
                ):  # the listener tells of the same fault
                    for id, version in zip(portion, await self._versions(portion), strict=True):
                        if id in self._changes and self._seen.get(id) != version:
                            self._seen[id] = version
                            self._mark(id)

    async def _versions(self, ids: list[str]) -> list[list[bytes | None]]:
        if not ids:
            return []
        pipe = self._redis.pipeline(transaction=False)
        for id in ids:
            pipe.hmget(f"{self._prefix}job:{id}", ["v", "o"])
        async with asyncio.timeout(AGAIN):
            found: list[list[bytes | None]] = await pipe.execute()
        return found

    def _channels(self) -> list[str]:
        return [f"{self._prefix}news:{id}" for id in self._changes]

    async def _read(self, connection: Connection) -> None:
        silent = 0
        skip = len(f"{self._prefix}news:")
        while True:
            try:
                async with asyncio.timeout(AGAIN):
                    message = await connection.read_response(
                        timeout=10 * AGAIN, disconnect_on_error=False
                    )
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
                self._mark(message[1].decode()[skip:])

    def _mark(self, id: str) -> None:
        for change in self._changes.get(id, ()):
            change.mark()

    def _mark_all(self) -> None:
        for watchers in self._changes.values():
            for change in watchers:
                change.mark()

    async def close(self) -> None:
        """Ends the connection; whoever still waits reads again."""
        tasks, self._tasks = self._tasks, []
        if self._saying is not None:
            tasks.append(self._saying)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._mark_all()
