"""The catalogue as this process knows it: read when it changed, so that a new task needs no new API."""

import asyncio

import structlog

from tandem_shared.catalogue import CatalogueEntry
from tandem_shared.errors import UnknownTask
from tandem_shared.queue.queue import Queue

log = structlog.get_logger()


class Catalogue:
    """The entries by name. `number` grows with every change that was seen; 0: nothing has been read yet."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._stamp = b""
        self._reading: asyncio.Task[None] | None = None
        self.entries: dict[str, CatalogueEntry] = {}
        self.number = 0

    async def refresh(self) -> None:
        """Reads what changed; calls at the same time share one reading. Raises Unavailable."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._read_done)
        await asyncio.shield(self._reading)

    def _read_done(self, task: asyncio.Task[None]) -> None:
        self._reading = None
        if not task.cancelled():
            task.exception()  # looked at: whoever asked may have gone

    async def _read(self) -> None:
        # The stamp first: what is published between the two is read again the next time.
        stamp = await self._queue.catalogue_stamp()
        if self.number and stamp == self._stamp:
            return
        entries = {entry.name: entry for entry in await self._queue.catalogue_entries()}
        # An entry that stayed as it was stays the same object, and what was made from it stays
        # good.
        self.entries = {
            name: _kept(self.entries.get(name), entry) for name, entry in entries.items()
        }
        self._stamp = stamp
        self.number += 1
        log.info("catalogue read", tasks=len(entries))

    async def find(self, name: str) -> CatalogueEntry:
        """The entry of a task, also one that was published just now. Raises UnknownTask and Unavailable."""
        for _ in range(2):  # the first reading may be one that had begun before
            if name in self.entries:
                break
            shared = self._reading is not None
            await self.refresh()
            if not shared:
                break
        if name not in self.entries:
            raise UnknownTask(name)
        return self.entries[name]


def _kept(old: CatalogueEntry | None, new: CatalogueEntry) -> CatalogueEntry:
    return old if old is not None and old == new else new
