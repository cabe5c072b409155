"""`job.lock("name")`: one job at a time, among all jobs of a tenant, on whatever worker they run."""

import asyncio
from types import TracebackType
from typing import Protocol, Self

from tandem_shared.times import Duration, parse_duration
from tandem_worker.errors import TaskError

LONGEST_NAME = 200  # characters


class Keeper(Protocol):
    """Who keeps the locks. The worker's own is worker/tandem_worker/runtime/attempt_store.py, the tests' one is `LocalLocks`."""

    async def take(self, name: str, wait: float | None) -> tuple[int, int]:
        """(number of the acquisition, fence), within `wait` seconds. Raises TaskError `lock_timeout`."""

    async def free(self, number: int) -> bool:
        """False: it was lost before."""


class Lock:
    """A lock of the job, held within `async with`; made anew for each.

    `fence` is a number that is larger than that of every earlier holder: a store that refuses
    smaller ones than it has seen is safe from a holder that lost its lock and does not know.
    """

    __slots__ = ("_keeper", "_number", "_wait", "fence", "name")

    def __init__(self, keeper: Keeper, name: str, wait: Duration | None) -> None:
        self.name, self._wait = check(name, wait)
        self.fence = 0  # until it is held
        self._keeper = keeper
        self._number: int | None = None

    async def __aenter__(self) -> Self:
        if self.fence:
            raise RuntimeError(
                f"the lock {self.name!r} was entered before: call job.lock for each `with`"
            )
        self._number, self.fence = await self._keeper.take(self.name, self._wait)
        return self

    async def __aexit__(
        self,
        type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.free(told=error is None)

    async def free(self, *, told: bool) -> None:
        """Frees it. Raises TaskError `lock_lost` if it was lost before, and somebody wants to be `told`."""
        number, self._number = self._number, None
        if number is not None and not await self._keeper.free(number) and told:
            raise lost(self.name)


def check(name: str, wait: Duration | None) -> tuple[str, float | None]:
    """The name and the seconds to wait. Raises TypeError, ValueError."""
    if not isinstance(name, str):
        raise TypeError(f"a lock is named by a string, {name!r} is none")
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise ValueError(
            f"a lock's name has 1 to {LONGEST_NAME} printable characters, {name[:50]!r} has not"
        )
    return name, None if wait is None else parse_duration(wait)


def timed_out(name: str, wait: float | None) -> TaskError:
    """The lock was not free in time: a later attempt may be luckier."""
    return TaskError(
        "lock_timeout", f"the lock {name!r} was not free within {wait or 0:g} s", retryable=True
    )


def lost(name: str) -> TaskError:
    """Somebody else may have held the lock while the code went on."""
    return TaskError(
        "lock_lost",
        f"the lock {name!r} was lost before the code under it had ended",
        retryable=True,
    )


class LocalLocks:
    """Locks among the tasks of one event loop, for tests: `tandem_worker.testing.run(…, locks=…)`."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._held: dict[int, asyncio.Lock] = {}
        self._fence = 0

    async def take(self, name: str, wait: float | None) -> tuple[int, int]:
        lock = self._locks.setdefault(name, asyncio.Lock())
        try:
            async with asyncio.timeout(wait):
                await lock.acquire()
        except TimeoutError:
            raise timed_out(name, wait) from None
        self._fence += 1
        self._held[self._fence] = lock
        return self._fence, self._fence

    async def free(self, number: int) -> bool:
        self._held.pop(number).release()
        return True
