"""Answers that wait for their client: in memory or on disk, and no more than a limit of them."""

import asyncio
import tempfile
from collections.abc import Callable
from typing import IO

from starlette.types import Send

from tandem_api.http.body import NDJSON
from tandem_api.http.memory import MemoryBudget

MEMORY_BYTES = 64 << 10  # that every request may have waiting; more of them go to disk
READ_BYTES = 64 << 10
STALLED_SECONDS = 60.0  # that a client may take for one write of answers


class AnswerSpool:
    """Keeps answers until the response begins, then sends them as fast as the client reads.

    It begins when all answers are there, or when no more may wait: many clients and proxies read
    nothing, or stop sending, once a response has begun before they have sent everything.
    """

    def __init__(self, send: Send, limit: int, budget: MemoryBudget) -> None:
        self._send, self._limit, self._budget = send, max(limit, MEMORY_BYTES), budget
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115 - `close` closes it
        self._moving = asyncio.Lock()
        self._written = self._sent = self._taken = 0
        self._grown, self._shrunk = asyncio.Event(), asyncio.Event()
        self._ended = False
        self._sending: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether the client has been sent a status."""
        return self._sending is not None

    def begin(self) -> None:
        """Starts the response."""
        if self._sending is None:
            self._sending = asyncio.create_task(self._run())

    async def put(self, data: bytes) -> None:
        """Appends data; waits for the client while too many answers wait.

        Raises TimeoutError after STALLED_SECONDS in which the client reads nothing.
        """
        while data:
            room = self._room(len(data))
            if not room:
                self.begin()
                await self._until_shrunk()
                continue
            part, data = data[:room], data[room:]
            async with self._moving:
                await self._on_file(lambda part=part: self._write(part))  # type: ignore[misc] # mypy does not infer its default
                self._written += len(part)
            self._grown.set()

    def _room(self, size: int) -> int:
        """How many of `size` bytes may be added now; takes them from the budget."""
        waiting = self._written - self._sent
        size = min(size, self._limit - waiting)
        free = max(0, MEMORY_BYTES - waiting)
        if size > free and self._budget.take(size - free):
            self._taken += size - free
            return size
        return min(size, free)

    async def _until_shrunk(self) -> None:
        self._shrunk.clear()
        async with asyncio.timeout(STALLED_SECONDS):
            await self._shrunk.wait()

    async def end(self) -> None:
        """Waits until all is sent. Raises TimeoutError after STALLED_SECONDS without progress."""
        self.begin()
        self._ended = True
        self._grown.set()
        sent = -1
        while self._sending is not None and not self._sending.done():
            if sent == self._sent:
                raise TimeoutError
            sent = self._sent
            await asyncio.wait({self._sending}, timeout=STALLED_SECONDS)
        if self._sending is not None:
            self._sending.result()

    async def cut(self) -> None:
        """Sends what is there, then breaks the response off, which shows that it is incomplete."""
        self.begin()
        while self._sent < self._written:
            await self._until_shrunk()
        await self.close()
        await self._send({"type": "http.response.abort"})

    async def _run(self) -> None:
        headers = [(b"content-type", NDJSON.encode()), (b"cache-control", b"no-store")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        while not (self._ended and self._sent == self._written):
            self._grown.clear()
            while data := await self._next():
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
                self._sent += len(data)
                self._give_back()
                self._shrunk.set()
            if not self._ended:
                await self._grown.wait()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _give_back(self) -> None:
        needed = max(0, self._written - self._sent - MEMORY_BYTES)
        if needed < self._taken:
            self._budget.give_back(self._taken - needed)
            self._taken = needed

    async def _next(self) -> bytes:
        async with self._moving:
            if self._sent < self._written:
                return await self._on_file(self._read)
            return b""

    async def _on_file(self, move: Callable[[], bytes]) -> bytes:
        # In memory this is faster than handing it to a thread.
        return move() if self._written < MEMORY_BYTES // 2 else await asyncio.to_thread(move)

    # The file is a ring of `_limit` bytes.

    def _write(self, data: bytes) -> bytes:
        at = self._written % self._limit
        self._file.seek(at)
        self._file.write(data[: self._limit - at])
        if len(data) > self._limit - at:
            self._file.seek(0)
            self._file.write(data[self._limit - at :])
        return b""

    def _read(self) -> bytes:
        at = self._sent % self._limit
        self._file.seek(at)
        return self._file.read(min(READ_BYTES, self._written - self._sent, self._limit - at))

    async def close(self) -> None:
        """Stops sending and removes the file."""
        if self._sending is not None and not self._sending.done():
            self._sending.cancel()
            await asyncio.wait({self._sending})
        self._budget.give_back(self._taken)
        self._taken = 0
        self._file.close()
