"""The catalogue as this process has last read it; it is read again when it changes."""

import asyncio

import structlog

from tandem_api.validation.messages import did_you_mean
from tandem_shared.catalogue import CatalogueEntry
from tandem_shared.errors import Unavailable, UnknownTask
from tandem_shared.queue.queue import Queue

log = structlog.get_logger()


class Catalogue:
    """The entries by name, sorted; `number` counts the versions that were read."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._stamp = b""
        self._reading: asyncio.Task[None] | None = None
        self.entries: dict[str, CatalogueEntry] = {}
        self.number = 0

    async def refresh(self) -> None:
        """Reads Redis' clock, and the catalogue if it changed. Raises Unavailable.

        Concurrent calls share a read.
        """
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._read_done)
        await asyncio.shield(self._reading)

    def _read_done(self, task: asyncio.Task[None]) -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()  # retrieved: asyncio would log it if no caller waits any more

    async def _read(self) -> None:
        await self._queue.clock.sync()  # before the first submission, and then once a second
        # Read the stamp first: whatever is published in between is read again next time.
        stamp = await self._queue.catalogue_stamp()
        if self.number and stamp == self._stamp:
            return
        entries = {entry.name: entry for entry in await self._queue.catalogue_entries()}
        # An unchanged entry stays the same object, so that its compiled validator stays valid.
        self.entries = {
            name: entry if entry != self.entries.get(name) else self.entries[name]
            for name, entry in entries.items()
        }
        self._stamp = stamp
        self.number += 1
        log.info("catalogue read", tasks=len(entries))

    async def find(self, name: str) -> CatalogueEntry:
        """A task's entry, even one published just now.

        Raises UnknownTask, and Unavailable before any worker has published its tasks.
        """
        if name not in self.entries:
            shared = self._reading is not None
            await self.refresh()
            if shared and name not in self.entries:  # that read may have begun too early
                await self.refresh()
        if name not in self.entries:
            if not self.entries:
                raise Unavailable("no worker has published its tasks yet: start one, and try again")
            raise UnknownTask(name, did_you_mean(name, self.entries))
        return self.entries[name]
