"""Waiting for jobs and for Redis: never longer than asked, never in a busy loop, and not beyond the service's end."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tandem_shared.errors import Full, Unavailable
from tandem_shared.jobs.record import Record
from tandem_shared.queue.queue import Queue

T = TypeVar("T")

LONGEST = 30.0  # seconds that a client may have us wait
PAUSES = (0.05, 0.25)  # seconds before Redis is asked again
AT_ONCE = 1.0  # seconds; a failure that took longer than this is not worth another try


class Drain:
    """The end of this process's service: announced to who probes it, then begun, and told to all who wait."""

    def __init__(self) -> None:
        self.announced = False
        self.begun = False
        self._told: set[Callable[[], None]] = set()

    def announce(self) -> None:
        """From now on the process is unready, and asks clients to come back over another connection."""
        self.announced = True

    def begin(self) -> None:
        """Who waits for news gets what there is, and goes."""
        self.announced = self.begun = True
        for tell in list(self._told):
            tell()

    @contextmanager
    def telling(self, tell: Callable[[], None]) -> Iterator[None]:
        """Has `tell` called when the drain begins."""
        self._told.add(tell)
        try:
            yield
        finally:
            self._told.discard(tell)


async def steadily(call: Callable[[], Awaitable[T]]) -> T:
    """The answer, also over a connection that Redis closed meanwhile: what fails at once is tried again twice.

    For calls that may be repeated, as all of the queue's.
    """
    for pause in PAUSES:
        begun = time.monotonic()
        try:
            return await call()
        except Full:
            raise
        except Unavailable:
            if time.monotonic() - begun > AT_ONCE:
                raise
        await asyncio.sleep(pause)
    return await call()


async def until(
    enough: Callable[[Record], bool], id: str, *, tenant: str, queue: Queue, drain: Drain, seconds: float
) -> Record | None:
    """The job as soon as it is `enough`, else as it is after `seconds` or when the service ends; None if it is gone."""
    end = time.monotonic() + min(seconds, LONGEST)
    async with queue.watch(id) as change:
        with drain.telling(change.mark):
            while True:
                record = await steadily(lambda: queue.get(id, tenant=tenant))
                left = end - time.monotonic()
                if record is None or enough(record) or left <= 0 or drain.begun:
                    return record
                await change.wait(left)
