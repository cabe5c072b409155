"""What an attempt keeps in Redis under its token: results of its steps, and its locks."""

import asyncio
import contextlib
from collections.abc import Callable
from functools import cached_property
from typing import NoReturn, Protocol, TypeVar

from tandem_shared.backoff import until_available
from tandem_shared.errors import Unavailable
from tandem_shared.queue.locks import Acquisition, LockReply
from tandem_shared.queue.queue import Queue
from tandem_shared.queue.steps import Step
from tandem_worker.errors import Permanent
from tandem_worker.jobs.locks import timed_out
from tandem_worker.jobs.steps import too_many

MOST_LOCKS = 100  # that an attempt holds or waits for
PATIENCE = 2.0  # seconds to wait for what goes on without being waited for
LEAST = 0.2  # seconds between two questions for a lock, unless news come

T = TypeVar("T")


class Tenure(Protocol):
    """The attempt: `lost` stops it, and is None once it is over. The worker's own is `output.JobOutput`."""

    id: str
    token: str
    lost: Callable[[], None] | None


class Fenced:
    """The `Store` of the job's steps and the `Keeper` of its locks. Redis being away is waited for."""

    _number = 0  # of the last acquisition

    def __init__(self, queue: Queue, tenure: Tenure) -> None:
        self._queue, self._tenure = queue, tenure

    @cached_property
    def _held(self) -> dict[int, Acquisition]:
        # And those that wait. Most jobs take no lock, so it is made for the first one; so is the
        # next.
        return {}

    @cached_property
    def _freeing(self) -> set[asyncio.Task[bool]]:
        return set()

    # ---------------------------------------------------------------------------------------- steps

    async def load(self) -> dict[str, bytes]:
        kept = await until_available(
            lambda: self._queue.steps.load(self._tenure.id, self._tenure.token)
        )
        return await self._gone() if kept is None else kept

    async def keep(self, name: str, body: bytes) -> bytes:
        step = Step(self._tenure.id, self._tenure.token, name, body)
        kept = await until_available(lambda: self._queue.steps.keep(step))
        if kept.word == "lost":
            await self._gone()
        elif kept.word == "full":
            raise too_many()
        return kept.body

    async def _gone(self) -> NoReturn:
        """The attempt is no longer this worker's: it is told, and its cancellation awaited here."""
        if self._tenure.lost is not None:
            self._tenure.lost()
        await asyncio.sleep(PATIENCE)
        raise asyncio.CancelledError("the attempt is lost")

    # ---------------------------------------------------------------------------------------- locks

    async def take(self, name: str, wait: float | None) -> tuple[int, int]:
        if len(self._held) >= MOST_LOCKS:
            raise Permanent("too_large", f"a job may hold or wait for {MOST_LOCKS} locks at a time")
        self._number += 1
        one = self._held[self._number] = Acquisition(
            self._tenure.id, self._tenure.token, self._number, name
        )
        clock = asyncio.get_running_loop().time
        until = None if wait is None else clock() + wait
        try:
            asked = await self._ask(one)
            if asked.fence is not None:
                return one.number, asked.fence
            async with self._queue.locks.subscribe(one) as change:
                while True:
                    left = max(LEAST, asked.again)
                    if until is not None:
                        left = min(left, until - clock())
                        if left <= 0:
                            raise timed_out(name, wait)
                    # First for the subscription, from which on no news are missed.
                    await change.wait(left)
                    asked = await self._ask(one)
                    if asked.fence is not None:
                        return one.number, asked.fence
        except BaseException:
            self._free(one)
            raise

    async def _ask(self, one: Acquisition) -> LockReply:
        try:
            asked = await self._queue.locks.acquire(one)
        except Unavailable:
            return LockReply(None, LEAST)
        return await self._gone() if asked is None else asked

    async def free(self, number: int) -> bool:
        freeing = self._free(self._held[number])
        await asyncio.wait({freeing}, timeout=PATIENCE)
        if not freeing.done() or freeing.result():
            return True
        if self._tenure.lost is not None:
            self._tenure.lost()
        return False

    def _free(self, one: Acquisition) -> "asyncio.Task[bool]":
        """Goes on after whoever waits for it, until Redis has answered or the attempt is over, which frees all."""

        async def free() -> bool:
            while self._tenure.lost is not None:
                with contextlib.suppress(Unavailable):
                    return await self._queue.locks.release(one)
                await asyncio.sleep(LEAST)
            return True

        self._held.pop(one.number, None)
        freeing = asyncio.create_task(free())
        self._freeing.add(freeing)
        freeing.add_done_callback(self._freeing.discard)
        return freeing
