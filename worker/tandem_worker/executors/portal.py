"""The loop's side of the conversation with `def` code: does what `sync.Channel.call` asks for."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from tandem_worker.jobs.job import Job

if TYPE_CHECKING:
    from tandem_worker.jobs.files import FileRef

if TYPE_CHECKING:
    from tandem_worker.jobs.files import FileRef
    from tandem_worker.jobs.locks import Lock


class Desk:
    """Works on the job for plain code: its files, its steps, its locks."""

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
        """Do one operation; a JSON value and bytes go in and come out. Raises what the files raise."""
        return await self._operations[operation](argument, body)

    async def _stat(self, ref: Any, _: bytes) -> tuple[Any, bytes]:
        return (await self._job.files.stat(ref)).model_dump(mode="json"), b""

    async def _read(self, ref: Any, _: bytes) -> tuple[Any, bytes]:
        return None, await self._job.files.read(ref)

    async def _range(self, argument: Any, _: bytes) -> tuple[Any, bytes]:
        return None, await self._job.files.range(*argument)

    async def _open(self, argument: Any, _: bytes) -> tuple[Any, bytes]:
        ref, start, left = argument
        for handle in left:
            await _end(self._readers.pop(handle))
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
        # A writer that failed takes nothing any more: its error is the answer.
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
        fence, told = argument
        await self._locks.pop(fence).free(told=told)
        return None, b""

    async def close(self) -> None:
        """Let go of everything that the code left open; what it did not finish writing is dropped."""
        for _, writer in self._writers.values():
            writer.cancel()
        if self._writers:
            await asyncio.wait([writer for _, writer in self._writers.values()], timeout=5)
        for reader in self._readers.values():
            await _end(reader)
        self._writers.clear()
        self._readers.clear()


async def _end(reader: AsyncIterator[bytes]) -> None:
    close = getattr(reader, "aclose", None)
    if close is not None:
        await close()


def facts(job: Job) -> dict[str, Any]:
    """What a SyncJob knows of the job, as JSON values."""
    return {
        "id": job.id,
        "task": job.task,
        "deadline": job.deadline,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "tenant": job.tenant,
        "traceparent": job.traceparent,
    }
