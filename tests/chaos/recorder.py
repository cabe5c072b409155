"""The queue's events as they were written, read past everything that is made to fail."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError


class Event(NamedTuple):
    """One transition."""

    id: str
    state: str
    stamp: int
    attempt: int


class Recorder:
    """Follows the stream `events` from its beginning."""

    def __init__(self, client: Callable[[], "Redis"]) -> None:
        self.events: list[Event] = []
        self._client = client
        self._last = "0-0"
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._read())

    async def stop(self) -> None:
        """Ends, with everything read that there is."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        client = self._client()
        try:
            while await self._more(client, None):
                pass
        finally:
            await client.aclose()

    async def _read(self) -> None:
        while True:
            client = self._client()
            try:
                while True:
                    await self._more(client, 1000)
            except (RedisError, OSError, TimeoutError):
                await asyncio.sleep(0.05)
            finally:
                await client.aclose()

    async def _more(self, client: "Redis", block: int | None) -> bool:
        found: Any = await client.xread({"tandem:{a}:events": self._last}, count=500, block=block)
        for _, entries in found or ():
            for place, fields in entries:
                self._last = place
                for line in fields["e"].splitlines():
                    id, state, stamp, attempt, *_ = line.split(" ")
                    self.events.append(Event(id, state, int(stamp), int(attempt)))
        return bool(found)
