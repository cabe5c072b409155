"""The event loop's side of a `Channel`: does for `def` code what needs the loop."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from tandem_worker.jobs.channel import Report
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.locks import Lock
from tandem_worker.jobs.reports import Sink

CLOSE_SECONDS = 5.0  # for unfinished files to be dropped


async def deliver(sink: Sink, report: Report, body: bytes) -> None:
    """Pass a report on to the job's sink."""
    if report == "output":
        await sink.output(body)
    elif report == "progress":
        await sink.progress(body)
    else:
        sink.log(body)


class Portal:
    """Works on one job's files, steps and locks, for `Channel.call`.

    Each `on_…` method is an operation. It takes the argument, and the body if there is one. It
    returns bytes, or a value that `processes.frame` can write.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._readers: dict[int, AsyncIterator[bytes]] = {}
        self._writers: dict[int, tuple[asyncio.Queue[bytes], asyncio.Task[FileRef]]] = {}
        self._handles = 0
        self._locks: dict[int, Lock] = {}

    async def answer(self, operation: str, argument: Any, body: bytes) -> Any:
        """Run one operation. Raises what the job's own methods raise."""
        run = getattr(self, f"on_{operation}")
        return await (run(argument, body) if body else run(argument))

    async def on_stat(self, ref: Any) -> FileRef:
        return await self._job.files.stat(ref)

    async def on_read(self, ref: Any) -> bytes:
        return await self._job.files.read(ref)

    async def on_range(self, argument: Any) -> bytes:
        return await self._job.files.range(*argument)

    async def on_open(self, argument: Any) -> int:
        ref, start, closed = argument
        for handle in closed:
            await _close(self._readers.pop(handle))
        self._handles += 1
        self._readers[self._handles] = aiter(self._job.files.open(ref, start))
        return self._handles

    async def on_next(self, handle: int) -> bytes:
        async for piece in self._readers[handle]:
            if piece:
                return piece
        return b""

    async def on_create(self, argument: Any) -> int:
        name, content_type = argument
        queue: asyncio.Queue[bytes] = asyncio.Queue(maxsize=2)

        async def pieces() -> AsyncIterator[bytes]:
            while piece := await queue.get():
                yield piece

        self._handles += 1
        writing = self._job.files.write(name, pieces(), content_type=content_type)
        self._writers[self._handles] = (queue, asyncio.create_task(writing))
        return self._handles

    async def on_append(self, handle: int, piece: bytes) -> None:
        queue, writer = self._writers[handle]
        putting = asyncio.create_task(queue.put(piece))
        try:
            await asyncio.wait({putting, writer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            putting.cancel()
        if writer.done() and not putting.done():
            writer.result()  # it failed, so nothing empties the queue: raise its error

    async def on_commit(self, handle: int) -> FileRef:
        await self.on_append(handle, b"")
        ref = await self._writers[handle][1]
        del self._writers[handle]
        return ref

    async def on_step(self, name: str) -> bytes | None:
        return await self._job.steps.take(name)

    async def on_keep(self, name: str, body: bytes) -> bytes:
        return await self._job.steps.keep(name, body)

    async def on_drop(self, name: str) -> None:
        self._job.steps.drop(name)

    async def on_lock(self, argument: Any) -> int:
        name, wait = argument
        lock = await self._job.lock(name, wait=wait).__aenter__()
        self._locks[lock.fence] = lock
        return lock.fence

    async def on_unlock(self, argument: Any) -> None:
        fence, check = argument
        await self._locks.pop(fence).release(check=check)

    async def close(self) -> None:
        """Close what the code left open, and drop files that it did not commit."""
        writers = [writer for _, writer in self._writers.values()]
        for writer in writers:
            writer.cancel()
        if writers:
            await asyncio.wait(writers, timeout=CLOSE_SECONDS)
        for reader in self._readers.values():
            await _close(reader)
        self._writers.clear()
        self._readers.clear()


async def _close(reader: AsyncIterator[bytes]) -> None:
    close = getattr(reader, "aclose", None)
    if close is not None:
        await close()
