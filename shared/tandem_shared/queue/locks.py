"""Locks that jobs hold, one holder per tenant and name; a lock lasts as long as the job's lease."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import NamedTuple

from tandem_shared.backoff import until_available
from tandem_shared.queue.pubsub import ChangeSignal, JobSubscriptions
from tandem_shared.queue.recent import Repeats
from tandem_shared.queue.scripts import Scripts


class Acquisition(NamedTuple):
    """One `async with` of an attempt; `number` is unique in it. Names lack control characters.

    `fence` is the one under which it holds the lock, 0 before.
    """

    id: str
    token: str
    number: int
    name: str
    fence: int = 0


class LockReply(NamedTuple):
    """The fence under which the lock is held; if None, ask again after `again` seconds."""

    fence: int | None
    again: float


class Locks:
    """Locks of one shard. Calls raise Unavailable if Redis does not answer; repeats are safe.

    `held` has what to call if a Redis that comes back older does not know a holder.
    """

    def __init__(self, scripts: Scripts, subscriptions: JobSubscriptions, repeats: Repeats) -> None:
        self._scripts, self._subscriptions = scripts, subscriptions
        self.held: dict[Acquisition, Callable[[], None]] = {}
        repeats.on_restart(self._check)

    async def _check(self) -> None:
        for acquisition, on_lost in list(self.held.items()):
            reply = await until_available(partial(self.acquire, acquisition))
            if reply is None and acquisition in self.held:
                del self.held[acquisition]
                on_lost()

    async def acquire(self, acquisition: Acquisition) -> LockReply | None:
        """Takes the lock, or a place in its queue; None if the attempt has lost the job.

        The place is kept, and must be asked for again, until `release` or the attempt's end. With a
        fence, takes nothing: None also if the acquisition does not hold the lock.
        """
        word, number = await self._scripts.run("lock", *acquisition)
        if word == b"lost":
            return None
        held = word == b"held"
        return LockReply(int(number), 0.0) if held else LockReply(None, int(number) / 1000)

    async def release(self, acquisition: Acquisition) -> bool:
        """Frees the lock or the place in its queue; False if the attempt had lost it before."""
        return bool(await self._scripts.run("unlock", *acquisition) == b"ok")

    def subscribe(self, acquisition: Acquisition) -> AbstractAsyncContextManager[ChangeSignal]:
        """A signal that is set when the lock has been handed to this acquisition."""
        return self._subscriptions.subscribe(f"{acquisition.id}:{acquisition.number}")
