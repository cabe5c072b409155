"""Pauses between tries while Redis, the ledger's database or the file store is unavailable."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tandem_shared.errors import Unavailable

T = TypeVar("T")


class Backoff:
    """Pauses that double from `first_seconds` to `max_seconds`, each cut by up to half at random.

    The jitter keeps processes that lost the same Redis from coming back in step.
    """

    def __init__(self, *, first_seconds: float = 0.05, max_seconds: float = 2.0) -> None:
        self._first, self._max = first_seconds, max_seconds
        self._next = first_seconds

    def reset(self) -> None:
        """Start over, after a try that succeeded."""
        self._next = self._first

    def next(self) -> float:
        """Seconds to wait now; the following call returns about twice as many."""
        pause, self._next = self._next, min(2 * self._next, self._max)
        return pause * random.uniform(0.5, 1)

    async def sleep(self) -> None:
        """Sleep for `next()` seconds."""
        await asyncio.sleep(self.next())


async def until_available(call: Callable[[], Awaitable[T]]) -> T:
    """The answer of `call`, repeated while it raises Unavailable; the caller sets a timeout."""
    backoff = Backoff()
    while True:
        try:
            return await call()
        except Unavailable:
            await backoff.sleep()
