"""The worker's entry in Redis: who it is, and which tasks it runs."""

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence

import structlog

from tandem_shared import catalogue
from tandem_shared.backoff import Backoff
from tandem_shared.errors import Unavailable
from tandem_shared.queue.messages import WorkerInfo
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import Settings
from tandem_shared.setup.identity import encode, identity
from tandem_shared.version import tandem_version
from tandem_worker.runtime.waiting import wait_first

log = structlog.get_logger("worker")


class Registration:
    """Written when the worker starts, and again whenever Redis turns out not to know the worker.

    `hidden` entries can be claimed by this worker but are not published in the catalogue.
    """

    def __init__(
        self,
        queue: Queue,
        settings: Settings,
        stopping: asyncio.Event,
        *,
        entries: Sequence[catalogue.CatalogueEntry],
        hidden: Sequence[catalogue.CatalogueEntry],
    ) -> None:
        host = socket.gethostname()
        self.id = f"{host.partition('.')[0][:32]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.digest = catalogue.digest([*entries, *hidden])
        self._info = WorkerInfo(  # `started_at` is set by `register`
            id=self.id,
            host=host,
            pid=os.getpid(),
            queues=settings.queues,
            concurrency=settings.concurrency,
            version=tandem_version(),
            started_at=0.0,
            setup=encode(identity(settings)),
        )
        self._queue, self._stopping = queue, stopping
        self._entries, self._hidden = entries, hidden

    async def register(self) -> bool:
        """Register, however long Redis is unavailable. False: the worker stopped meanwhile."""
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                now = await self._queue.clock.sync()
                if not self._info.started_at:
                    self._info = self._info._replace(started_at=now)
                await self._queue.register(self._info, self._entries, self._hidden)
            except Unavailable as error:
                log.warning("Redis is unavailable", during="register", error=str(error))
                await wait_first(self._stopping.wait(), timeout=backoff.next())
            else:
                return True
        return False
