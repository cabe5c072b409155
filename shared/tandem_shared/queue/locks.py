"""Locks that jobs hold, one holder per tenant and name; a lock lasts as long as the job's lease."""

from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from tandem_shared.queue.pubsub import ChangeSignal, JobSubscriptions
from tandem_shared.queue.scripts import Scripts


class Acquisition(NamedTuple):
    """One `async with` of an attempt; `number` is unique in it. Names lack control characters."""

    id: str
    token: str
    number: int
    name: str


class LockReply(NamedTuple):
    """The fence under which the lock is held; if None, ask again after `again` seconds."""

    fence: int | None
    again: float


class Locks:
    """Locks of one shard. Calls raise Unavailable if Redis does not answer; repeats are safe."""

    def __init__(self, scripts: Scripts, subscriptions: JobSubscriptions) -> None:
        self._scripts, self._subscriptions = scripts, subscriptions

    async def acquire(self, acquisition: Acquisition) -> LockReply | None:
        """Takes the lock, or a place in its queue; None if the attempt has lost the job.

        The place is kept, and must be asked for again, until `release` or the attempt's end.
        """
        word, number = await self._scripts.run("lock", *acquisition)
        if word == b"lost":
            return None
        held = word == b"held"
        return LockReply(int(number), 0.0) if held else LockReply(None, int(number) / 1000)

    async def release(self, acquisition: Acquisition) -> bool:
        """Frees the lock or the place in its queue; False if the attempt had already lost both."""
        return bool(await self._scripts.run("unlock", *acquisition) == b"ok")

    def subscribe(self, acquisition: Acquisition) -> AbstractAsyncContextManager[ChangeSignal]:
        """A signal that is set when the lock has been handed to this acquisition."""
        return self._subscriptions.subscribe(f"{acquisition.id}:{acquisition.number}")
