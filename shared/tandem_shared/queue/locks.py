"""Locks that jobs hold: one holder a name and tenant, the others wait in order; the job's own lease is the lock's."""

from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from tandem_shared.queue.pubsub import Change, Watch
from tandem_shared.queue.scripts import Scripts


class Acquisition(NamedTuple):
    """One `with` of one attempt; `number` tells it from the attempt's others. The name has no control characters."""

    id: str
    token: str
    number: int
    name: str


class Asked(NamedTuple):
    """`fence`: the lock is held, under this number. Else `again` is the seconds after which to ask once more."""

    fence: int | None
    again: float


class Locks:
    """The locks of one shard. Every method raises Unavailable when Redis does not answer; repeating one is safe."""

    def __init__(self, scripts: Scripts, watch: Watch) -> None:
        self._scripts, self._watch = scripts, watch

    async def ask(self, one: Acquisition) -> Asked | None:
        """Takes the lock, or a place among those who wait. None: the attempt is no longer the job's.

        A place is kept, and asked for again, until `give_up` or the attempt's end.
        """
        word, number = await self._scripts.run("lock", one)
        if word == b"lost":
            return None
        return Asked(int(number), 0.0) if word == b"held" else Asked(None, int(number) / 1000)

    async def give_up(self, one: Acquisition) -> bool:
        """Frees the lock, or the place. False: the attempt is over, and has lost both before."""
        return bool(await self._scripts.run("unlock", one) == b"ok")

    def watch(self, one: Acquisition) -> AbstractAsyncContextManager[Change]:
        """A change that is marked when the lock has been handed on to this acquisition."""
        return self._watch.job(f"{one.id}:{one.number}")
