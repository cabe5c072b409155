"""What Redis accepted in the last seconds, to be repeated if Redis comes back older than it was.

A Redis that crashes with `appendfsync everysec` loses up to two seconds, and a replica that takes
over lacks what had not reached it. Either way another process answers from then on, with another
run id, and every connection to it is new. So each new connection reads the run id, before anything
else is sent on it: if it differs, what this process still knows is sent again. All of it is
idempotent, so it does no harm if nothing was lost.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import structlog

from tandem_shared.cancellation import cancel_and_wait
from tandem_shared.errors import TandemError

T = TypeVar("T")

SAFE_SECONDS = 3.0
# No job is claimed for this long after another Redis was met: longer than workers wait to connect
# again, so that each has repeated its outcomes before their jobs can run once more.
QUIET_SECONDS = 2.5

log = structlog.get_logger()


class Recent(Generic[T]):
    """Items in the order in which Redis accepted them, until they are safe.

    Keeps at most about `max_bytes`, as `add` counts them: then the oldest are dropped. While
    `frozen`, only that drops any.
    """

    def __init__(self, max_bytes: int) -> None:
        self.frozen = False
        self._max_bytes, self._bytes = max_bytes, 0
        self._batches: deque[tuple[float, int, Sequence[T]]] = deque()  # time, bytes, items

    def add(self, items: Sequence[T], size: int) -> None:
        """Keeps what Redis has just accepted."""
        self._batches.append((time.monotonic(), size, items))
        self._bytes += size
        self.confirm()

    def confirm(self) -> None:
        """Drops what is safe, since the same Redis has just answered."""
        safe = time.monotonic() - SAFE_SECONDS
        batches = self._batches
        while batches and (
            self._bytes > self._max_bytes or (not self.frozen and batches[0][0] < safe)
        ):
            self._bytes -= batches.popleft()[1]

    def __iter__(self) -> Iterator[T]:
        for _, _, items in list(self._batches):
            yield from items


class Repeats:
    """All that a process keeps of what Redis accepted, and how it is repeated."""

    def __init__(self, redis: Any) -> None:
        self._kept: list[Recent[Any]] = []
        self._calls: list[Callable[[], Awaitable[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._again = False  # Redis has changed once more
        self._quiet_until = 0.0
        run_id = getattr(redis.connection_pool, "run_id", None)
        if run_id is not None:
            run_id.on_change.append(self.start)

    def keep(self, max_bytes: int) -> Recent[Any]:
        """Something more to keep."""
        recent: Recent[Any] = Recent(max_bytes)
        self._kept.append(recent)
        return recent

    def on_restart(self, call: Callable[[], Awaitable[None]]) -> None:
        """Awaits `call` whenever another process answers for Redis."""
        self._calls.append(call)

    def confirm(self) -> None:
        """Redis has just answered: see `Recent.confirm`."""
        for recent in self._kept:
            recent.confirm()

    def start(self) -> None:
        """Begins to repeat everything, in the background."""
        for recent in self._kept:
            recent.frozen = True
        self._again = True
        self._quiet_until = time.monotonic() + QUIET_SECONDS
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._repeat(), name="repeat what Redis may have lost")

    @property
    def quiet(self) -> float:
        """Seconds until jobs may be claimed again, below zero if they may."""
        return self._quiet_until - time.monotonic()

    async def _repeat(self) -> None:
        while self._again:
            self._again = False
            log.warning("another Redis answers: repeating what this process did last")
            for call in self._calls:
                try:
                    await call()
                except TandemError as error:
                    log.warning("cannot repeat what Redis may have lost", error=str(error))
        for recent in self._kept:
            recent.frozen = False

    async def close(self) -> None:
        """Ends a repetition that is under way."""
        if self._task is not None:
            await cancel_and_wait(self._task)
