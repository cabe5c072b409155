"""Changes of jobs by pub/sub: one connection per process, however many readers wait.

A message says only that something changed; the reader then reads the record. So a lost message
costs only time: all readers read again after each (re)subscription, and a poll compares the version
of every watched record once in POLL_SECONDS.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

from redis.asyncio import Redis
from redis.asyncio.connection import Connection
from redis.exceptions import RedisError

from tandem_shared.backoff import Backoff
from tandem_shared.errors import Unavailable
from tandem_shared.queue.bells import open_connection
from tandem_shared.queue.reads import read_fields
from tandem_shared.queue.scripts import MAX_CALL_JOBS, Scripts

PING_SECONDS = 5.0  # of silence; also the time that Redis has for an answer
POLL_SECONDS = 5.0

_FAULTS = (RedisError, OSError, TimeoutError)


class ChangeSignal:
    """One reader's interest in one job."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Marks that the job changed, or may have."""
        self._event.set()

    async def wait(self, timeout: float | None = PING_SECONDS) -> bool:
        """Whether it was set, before or within `timeout` seconds; clears it. If so, read again."""
        if not self._event.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._event.wait()
        changed = self._event.is_set()
        self._event.clear()
        return changed


class JobSubscriptions:
    """The jobs that this process watches, and the connection that brings their changes."""

    def __init__(self, redis: "Redis", prefix: str, scripts: Scripts) -> None:
        self._redis, self._scripts, self._channel = redis, scripts, f"{prefix}news"
        self._signals: dict[str, set[ChangeSignal]] = {}
        self._connection: Connection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._commands: dict[str, str] = {}  # the last command for a job that has not been sent
        self._sender: asyncio.Task[None] | None = None
        self._versions: dict[str, list[bytes | None]] = {}  # at the last poll
        self._sending = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def subscribe(self, id: str) -> AsyncIterator[ChangeSignal]:
        """A signal that is set when the job changes, and once its changes are sure to arrive."""
        signal = ChangeSignal()
        signals = self._signals.setdefault(id, set())
        signals.add(signal)
        try:
            if not self._tasks:
                self._tasks = [
                    asyncio.create_task(self._listen(), name="job changes"),
                    asyncio.create_task(self._poll(), name="poll of job versions"),
                ]
            elif len(signals) == 1:
                self._plan("SUBSCRIBE", id)
            yield signal
        finally:
            signals.discard(signal)
            if not signals and self._signals.get(id) is signals:
                del self._signals[id]
                self._versions.pop(id, None)
                self._plan("UNSUBSCRIBE", id)

    def _plan(self, command: str, id: str) -> None:
        self._commands[id] = command
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_planned(), name="subscribe")

    async def _send_planned(self) -> None:
        """Sends what one turn of the event loop planned in few commands: readers come in crowds."""
        while self._commands:
            planned, self._commands = self._commands, {}
            for command in ("UNSUBSCRIBE", "SUBSCRIBE"):
                ids = [id for id, last in planned.items() if last == command]
                for start in range(0, len(ids), MAX_CALL_JOBS):
                    await self._send(command, ids[start : start + MAX_CALL_JOBS])

    async def _send(self, command: str, ids: list[str]) -> None:
        connection = self._connection
        if connection is None:
            return  # the next connection subscribes to all that is watched then
        # The listener meets the same fault and reconnects.
        with contextlib.suppress(*_FAULTS):
            async with self._sending, asyncio.timeout(PING_SECONDS):
                await connection.send_command(command, *self._channels(ids))

    async def _listen(self) -> None:
        backoff = Backoff(max_seconds=1.0)
        while True:
            try:
                self._connection = connection = await open_connection(self._redis, PING_SECONDS)
                async with asyncio.timeout(PING_SECONDS):
                    await connection.send_command(
                        "SUBSCRIBE", self._channel, *self._channels(self._signals)
                    )
                self._set_all()
                backoff.reset()
                await self._read(connection)
            except _FAULTS:
                self._set_all()
                await backoff.sleep()
            finally:
                if self._connection is not None:
                    with contextlib.suppress(*_FAULTS):
                        await self._connection.disconnect(nowait=True)
                    self._connection = None

    async def _poll(self) -> None:
        """Finds changes whose message was lost; a new reader's signal is set in any case."""
        while True:
            ids = list(self._signals)
            rounds = max(1, -(-len(ids) // MAX_CALL_JOBS))
            for start in range(0, rounds * MAX_CALL_JOBS, MAX_CALL_JOBS):
                await asyncio.sleep(POLL_SECONDS / rounds)
                some = [id for id in ids[start : start + MAX_CALL_JOBS] if id in self._signals]
                if not some:
                    continue
                with contextlib.suppress(Unavailable):  # the listener meets the same fault
                    found = await read_fields(self._scripts, ("v", "o"), some)
                    for id, version in zip(some, found, strict=True):
                        if id in self._signals and self._versions.get(id) != version:
                            self._versions[id] = version
                            self._set(id)

    def _channels(self, ids: Iterable[str]) -> list[str]:
        return [f"{self._channel}:{id}" for id in ids]

    async def _read(self, connection: Connection) -> None:
        pinged = False
        skip = len(self._channel) + 1
        while True:
            try:
                async with asyncio.timeout(PING_SECONDS):
                    message = await connection.read_response(
                        timeout=10 * PING_SECONDS, disconnect_on_error=False
                    )
            except TimeoutError:
                if pinged:
                    raise  # the connection is dead
                pinged = True
                async with self._sending, asyncio.timeout(PING_SECONDS):
                    await connection.send_command("PING")
                continue
            pinged = False
            # ["message" | "subscribe" | "unsubscribe", channel, …] or ["pong", …]
            if isinstance(message, list) and message[0] in (b"message", b"subscribe"):
                self._set(message[1].decode()[skip:])

    def _set(self, id: str) -> None:
        for signal in self._signals.get(id, ()):
            signal.set()

    def _set_all(self) -> None:
        for id in self._signals:
            self._set(id)

    async def close(self) -> None:
        """Ends the connection; readers that still wait read once more."""
        tasks, self._tasks = self._tasks, []
        if self._sender is not None:
            tasks.append(self._sender)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._set_all()
