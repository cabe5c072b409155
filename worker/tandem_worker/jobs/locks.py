"""`job.lock("name")`: held by one job at a time, among all jobs of a tenant on all workers."""

import asyncio
from typing import Protocol, Self

from tandem_shared.times import Duration, parse_duration
from tandem_worker.errors import TaskError

MAX_NAME_CHARS = 200


class LockStore(Protocol):
    """Keeps locks: `runtime.attempt_store.AttemptStore` on a worker, `LocalLocks` in tests."""

    async def acquire(self, name: str, wait: float | None) -> tuple[int, int]:
        """(acquisition number, fence), within `wait` seconds. Raises TaskError `lock_timeout`."""

    async def release(self, number: int) -> bool:
        """False: the lock was lost before."""


class Lock:
    """A lock of the job, held within `async with`; each `with` needs a new one.

    `fence` is larger than that of every earlier holder. A resource that rejects a fence smaller
    than the largest it has seen is safe from a holder that lost its lock without noticing.
    """

    __slots__ = ("_number", "_store", "_wait", "fence", "name")

    def __init__(self, store: LockStore, name: str, wait: Duration | None) -> None:
        self.name, self._wait = checked(name, wait)
        self.fence = 0  # until it is held
        self._store = store
        self._number: int | None = None

    async def __aenter__(self) -> Self:
        if self.fence:
            raise used_before(self.name)
        self._number, self.fence = await self._store.acquire(self.name, self._wait)
        return self

    async def __aexit__(self, _type: object, error: object, _trace: object) -> None:
        await self.release(check=error is None)

    async def release(self, *, check: bool) -> None:
        """Free the lock. With `check`, raises TaskError `lock_lost` if it was lost before."""
        number, self._number = self._number, None
        if number is not None and not await self._store.release(number) and check:
            message = f"the lock {self.name!r} was lost before its `with` block ended"
            raise TaskError("lock_lost", message, retryable=True)


def checked(name: str, wait: Duration | None) -> tuple[str, float | None]:
    """The name, and the seconds to wait. Raises TypeError, ValueError."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a lock is a string, not {name!r}")
    if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise ValueError(
            f"{name[:50]!r} cannot name a lock; use 1 to {MAX_NAME_CHARS} printable characters"
        )
    return name, None if wait is None else parse_duration(wait)


def used_before(name: str) -> RuntimeError:
    """A second `with` on the same lock."""
    return RuntimeError(f"the lock {name!r} was used before; call job.lock for each `with`")


def lock_timeout(name: str, wait: float | None) -> TaskError:
    """The lock was not free in time; a later attempt may get it."""
    message = f"the lock {name!r} was not free within {wait or 0:g} s"
    return TaskError("lock_timeout", message, retryable=True)


class LocalLocks:
    """Locks among the tasks of one event loop, for tests: `testing.run(…, locks=…)`."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._held: dict[int, asyncio.Lock] = {}
        self._fence = 0

    async def acquire(self, name: str, wait: float | None) -> tuple[int, int]:
        lock = self._locks.setdefault(name, asyncio.Lock())
        try:
            async with asyncio.timeout(wait):
                await lock.acquire()
        except TimeoutError:
            raise lock_timeout(name, wait) from None
        self._fence += 1
        self._held[self._fence] = lock
        return self._fence, self._fence

    async def release(self, number: int) -> bool:
        self._held.pop(number).release()
        return True
