"""What an attempt keeps in Redis under its token: the results of its steps, and its locks."""

import asyncio
import contextlib
from functools import partial
from typing import Literal, NoReturn

from tandem_shared.backoff import until_available
from tandem_shared.errors import Unavailable
from tandem_shared.queue.locks import Acquisition, LockReply
from tandem_shared.queue.queue import Queue
from tandem_shared.queue.steps import Step
from tandem_worker.errors import Permanent
from tandem_worker.jobs.locks import lock_timeout
from tandem_worker.jobs.steps import too_many_steps
from tandem_worker.runtime.output import JobOutput

MAX_LOCKS = 100  # that an attempt holds or waits for
STOP_SECONDS = 2.0  # for a lost attempt to be cancelled, or for a lock to be freed
POLL_SECONDS = 0.2  # between two tries for a lock, unless a message comes first


_freeing: set[asyncio.Task[bool]] = set()  # the loop alone would not keep them alive


class AttemptStore:
    """The `StepStore` and the `LockStore` of a job, which wait while Redis is unavailable.

    `attempt` has the token; its `on_lost` stops the code, and is None once the attempt is over.
    """

    def __init__(self, queue: Queue, attempt: JobOutput) -> None:
        self._queue, self._attempt = queue, attempt
        self._number = 0  # of the last acquisition
        self._acquisitions: dict[int, Acquisition] = {}  # held, or waiting for their turn

    async def load(self) -> dict[str, bytes]:
        attempt = self._attempt
        kept = await until_available(lambda: self._queue.steps.load(attempt.id, attempt.token))
        return await self._lost() if kept is None else kept

    async def keep(self, name: str, body: bytes) -> bytes:
        step = Step(self._attempt.id, self._attempt.token, name, body)
        kept = await until_available(lambda: self._queue.steps.keep(step))
        if kept.word == "lost":
            await self._lost()
        elif kept.word == "full":
            raise too_many_steps()
        return kept.body

    async def _lost(self) -> NoReturn:
        """Stop the attempt, and wait here for its cancellation."""
        self._stop()
        await asyncio.sleep(STOP_SECONDS)
        raise asyncio.CancelledError("the attempt has lost its lease")

    def _stop(self, cause: Literal["lost", "torn"] = "lost") -> None:
        if self._attempt.on_lost is not None:
            self._attempt.on_lost(cause)

    async def acquire(self, name: str, wait: float | None) -> tuple[int, int]:
        if len(self._acquisitions) >= MAX_LOCKS:
            raise Permanent("too_large", f"a job may hold or wait for {MAX_LOCKS} locks at a time")
        self._number += 1
        lock = Acquisition(self._attempt.id, self._attempt.token, self._number, name)
        self._acquisitions[lock.number] = lock
        clock = asyncio.get_running_loop().time
        until = None if wait is None else clock() + wait
        try:
            reply = await self._ask(lock)
            if reply.fence is None:
                async with self._queue.locks.subscribe(lock) as change:
                    while reply.fence is None:
                        seconds = max(POLL_SECONDS, reply.again)
                        if until is not None:
                            seconds = min(seconds, until - clock())
                            if seconds <= 0:
                                raise lock_timeout(name, wait)
                        # The first wait ends with the subscription: no message is missed after it.
                        await change.wait(seconds)
                        reply = await self._ask(lock)
            held = lock._replace(fence=reply.fence)
            self._acquisitions[lock.number] = held
            self._queue.locks.held[held] = partial(self._stop, "torn")
            return lock.number, reply.fence
        except BaseException:
            self._release(lock)
            raise

    async def _ask(self, lock: Acquisition) -> LockReply:
        try:
            reply = await self._queue.locks.acquire(lock)
        except Unavailable:
            return LockReply(None, POLL_SECONDS)
        return await self._lost() if reply is None else reply

    async def release(self, number: int) -> bool:
        freeing = self._release(self._acquisitions[number])
        await asyncio.wait({freeing}, timeout=STOP_SECONDS)
        if not freeing.done() or freeing.result():
            return True
        self._stop("torn")
        return False

    def _release(self, lock: Acquisition) -> "asyncio.Task[bool]":
        """Free the lock in the background, until Redis answers or the attempt's end frees all."""

        async def free() -> bool:
            while self._attempt.on_lost is not None:
                with contextlib.suppress(Unavailable):
                    return await self._queue.locks.release(lock)
                await asyncio.sleep(POLL_SECONDS)
            return True

        self._acquisitions.pop(lock.number, None)
        self._queue.locks.held.pop(lock, None)
        freeing = asyncio.create_task(free())
        _freeing.add(freeing)
        freeing.add_done_callback(_freeing.discard)
        return freeing
