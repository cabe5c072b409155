"""A stored file as a readable stream for table readers, which block."""

import asyncio
from collections.abc import Iterator

from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job

_READ = 60.0  # seconds until the store has given a piece


class Stored:
    """A stored file's bytes for a thread; `read` of them so far."""

    def __init__(self, job: Job, source: FileRef) -> None:
        self.read = 0
        self._loop = asyncio.get_running_loop()
        self._pieces = job.files.open(source)

    def __iter__(self) -> Iterator[bytes]:
        while piece := asyncio.run_coroutine_threadsafe(self._next(), self._loop).result(_READ):
            self.read += len(piece)
            yield piece

    async def _next(self) -> bytes:
        return await anext(self._pieces, b"")
