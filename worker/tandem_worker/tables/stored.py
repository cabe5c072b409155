"""A stored file as an iterable of bytes for table readers, which run in a thread."""

import asyncio
from collections.abc import Iterator

from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job

READ_TIMEOUT_SECONDS = 60.0  # for each piece from the store


class StoredBytes:
    """The bytes of a stored file, to be iterated outside the event loop; `bytes_read` so far."""

    def __init__(self, job: Job, source: FileRef) -> None:
        self.bytes_read = 0
        self._loop = asyncio.get_running_loop()
        self._pieces = job.files.open(source)

    def __iter__(self) -> Iterator[bytes]:
        while piece := self._next_piece():
            self.bytes_read += len(piece)
            yield piece

    def _next_piece(self) -> bytes:
        future = asyncio.run_coroutine_threadsafe(self._anext(), self._loop)
        return future.result(READ_TIMEOUT_SECONDS)

    async def _anext(self) -> bytes:
        return await anext(self._pieces, b"")
