"""The event loop's side of a `Channel`: does for `def` code what needs the loop."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
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
    """Works on one job's files, steps and locks. An operation takes and returns a JSON value and bytes."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._readers: dict[int, AsyncIterator[bytes]] = {}
        self._writers: dict[int, tuple[asyncio.Queue[bytes], asyncio.Task[FileRef]]] = {}
        self._handles = 0
        self._locks: dict[int, Lock] = {}
        self._operations: dict[str, Callable[[Any, bytes], Awaitable[tuple[Any, bytes]]]] = {
            "stat": self._stat,
            "read": self._read,
            "range": self._range,
            "open": self._open,
            "next": self._next,
            "create": self._create,
            "append": self._append,
            "commit": self._commit,
            "step": self._step,
            "keep": self._keep,
            "drop": self._drop,
            "lock": self._lock,
            "unlock": self._unlock,
        }

    async def answer(self, operation: str, argument: Any, body: bytes) -> tuple[Any, bytes]:
        """Run one operation. Raises what the job's own methods raise."""
        return await self._operations[operation](argument, body)

    async def _stat(self, ref: Any, _: bytes) -> tuple[Any, bytes]:
        return (await self._job.files.stat(ref)).model_dump(mode="json"), b""

    async def _read(self, ref: Any, _: bytes) -> tuple[Any, bytes]:
        return None, await self._job.files.read(ref)

    async def _range(self, argument: Any, _: bytes) -> tuple[Any, bytes]:
        return None, await self._job.files.range(*argument)

    async def _open(self, argument: Any, _: bytes) -> tuple[Any, bytes]:
        ref, start, closed = argument
        for handle in closed:
            await _close(self._readers.pop(handle))
        self._handles += 1
        self._readers[self._handles] = aiter(self._job.files.open(ref, start))
        return self._handles, b""

    async def _next(self, handle: Any, _: bytes) -> tuple[Any, bytes]:
        async for piece in self._readers[handle]:
            if piece:
                return None, piece
        return None, b""

    async def _create(self, argument: Any, _: bytes) -> tuple[Any, bytes]:
        name, content_type = argument
        queue: asyncio.Queue[bytes] = asyncio.Queue(maxsize=2)

        async def pieces() -> AsyncIterator[bytes]:
            while piece := await queue.get():
                yield piece

        self._handles += 1
        writing = self._job.files.write(name, pieces(), content_type=content_type)
        self._writers[self._handles] = (queue, asyncio.create_task(writing))
        return self._handles, b""

    async def _append(self, handle: Any, piece: bytes) -> tuple[Any, bytes]:
        await self._put(*self._writers[handle], piece)
        return None, b""

    async def _commit(self, handle: Any, _: bytes) -> tuple[Any, bytes]:
        queue, writer = self._writers[handle]
        await self._put(queue, writer, b"")
        ref = await writer
        del self._writers[handle]
        return ref.model_dump(mode="json"), b""

    async def _put(
        self, queue: asyncio.Queue[bytes], writer: "asyncio.Task[FileRef]", piece: bytes
    ) -> None:
        # A writer that failed empties the queue no more: raise its error instead of waiting.
        putting = asyncio.create_task(queue.put(piece))
        try:
            await asyncio.wait({putting, writer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            putting.cancel()
        if writer.done() and not putting.done():
            writer.result()

    async def _step(self, name: Any, _: bytes) -> tuple[Any, bytes]:
        kept = await self._job.steps.take(name)
        return [kept is None], kept or b""

    async def _keep(self, name: Any, body: bytes) -> tuple[Any, bytes]:
        return None, await self._job.steps.keep(name, body)

    async def _drop(self, name: Any, _: bytes) -> tuple[Any, bytes]:
        self._job.steps.drop(name)
        return None, b""

    async def _lock(self, argument: Any, _: bytes) -> tuple[Any, bytes]:
        name, wait = argument
        lock = await self._job.lock(name, wait=wait).__aenter__()
        self._locks[lock.fence] = lock
        return lock.fence, b""

    async def _unlock(self, argument: Any, _: bytes) -> tuple[Any, bytes]:
        fence, check = argument
        await self._locks.pop(fence).release(check=check)
        return None, b""

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
