"""What a running job says, on its way to Redis: buffered, in order, fenced, and written once.

One report of a job is under way at a time; what is said meanwhile goes together in the next. So the first item leaves
at once, and a flood leaves in chunks of up to 64 KiB. Writers wait while their job's buffer is full: for Redis, never
for readers.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable

from shared.errors import Unavailable
from shared.queue import Batch, Queue, Report
from worker.errors import TaskError

CHUNK = 64 << 10  # bytes of one report
BUFFER = 256 << 10  # bytes a job may have said without their being written
LIMIT = 64 << 20  # bytes a job may say in all, as long as Redis alone keeps them
PACE = 0.1  # seconds between two reports of progress


class Outbox:
    """The reports of all jobs of a worker, many a round trip."""

    def __init__(self, queue: Queue) -> None:
        async def send(reports: list[Report]) -> list[str]:
            return await queue.report(reports, limit=LIMIT)

        self._batch = Batch(send, limit=100, room=1 << 20, size=lambda report: len(report.body))

    async def send(self, report: Report) -> str:
        """Written ('ok'), 'lost' or 'full'. While Redis is away it is repeated; a repeat is not written twice."""
        pause = 0.05
        while True:
            try:
                return await self._batch.call(report)
            except Unavailable:
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, 2.0)


class JobOutput:
    """The sink of one attempt (see `worker.job.Sink`)."""

    __slots__ = (
        "_buffered", "_due", "_entries", "_flight", "_more", "_number", "_outbox", "_progress", "_refused", "_room",
        "_told", "dropped", "full", "id", "lost", "token",
    )  # fmt: skip

    def __init__(self, outbox: Outbox, id: str, token: str, lost: Callable[[], None] | None) -> None:
        self.id, self.token = id, token
        self.full = False
        self.dropped = 0  # log entries for which there was no room
        self._told = 0
        self._refused: Exception | None = None
        self._outbox, self.lost = outbox, lost
        self._entries: deque[tuple[str, bytes]] = deque()
        self._buffered = 0
        self._number = 0
        self._progress: bytes | None = None
        self._due = 0.0  # when the next progress may leave, on the loop's clock
        self._more: asyncio.Event | None = None  # while progress waits for its time: something else came
        self._room: asyncio.Event | None = None
        self._flight: asyncio.Task[None] | None = None

    async def progress(self, body: bytes) -> None:
        """The newest state is what counts: it replaces one that has not left yet."""
        if not self.full:
            self._progress = body
            self._start()

    async def output(self, item: bytes) -> None:
        """One item. Raises TaskError `too_large` once the job has said all it may."""
        while self._buffered > BUFFER and not self.full:
            self._room = self._room or asyncio.Event()
            self._room.clear()
            await self._room.wait()
        if self.full:
            raise self._refused or _too_large()
        self._put("output", item)

    def log(self, body: bytes) -> None:
        """One entry; when the buffer is full it is counted, and the count is told."""
        if self._buffered > BUFFER or self.full:
            self.dropped += 1
        else:
            self._put("log", body)

    def _put(self, kind: str, body: bytes) -> None:
        if b"\n" in body:
            body = body.replace(b"\n", b" ")  # a report has a value a line; in JSON a raw line end is only white space
        self._entries.append((kind, body))
        self._buffered += len(body)
        self._start()
        if self._more is not None:
            self._more.set()

    def _start(self) -> None:
        if self._flight is None or self._flight.done():
            self._flight = asyncio.get_running_loop().create_task(self._fly())

    async def _fly(self) -> None:
        try:
            while (report := await self._next()) is not None:
                word = await self._outbox.send(report)
                if word != "ok":
                    self._stop(word, report.type)
                    return
                if report.type != "progress":
                    self._buffered -= len(report.body) - report.body.count(b"\n")
                if self._room is not None and self._buffered <= BUFFER:
                    self._room.set()
        except Exception as error:  # noqa: BLE001 - a fault of ours or of Redis: the attempt must not count what it said
            self._refused = error
            self._stop("failed", "")

    def _stop(self, word: str, kind: str) -> None:
        if word == "full" and (kind == "output" or any(kind == "output" for kind, _ in self._entries)):
            self._refused = _too_large()
        self.full = True  # nothing more is taken, whichever way it ended
        self._entries.clear()
        self._progress = None
        self._buffered = 0
        if self._room is not None:
            self._room.set()
        if word == "lost" and self.lost is not None:
            self.lost()

    async def _next(self) -> Report | None:
        loop = asyncio.get_running_loop()
        while not self._entries:
            if self._progress is None:
                return None
            wait = self._due - loop.time()
            if wait <= 0:
                body, self._progress, self._due = self._progress, None, loop.time() + PACE
                return self._report("progress", body)
            self._more = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._more.wait()
            self._more = None
        return self._chunk()

    def _chunk(self) -> Report:
        kind, body = self._entries.popleft()
        parts, size = [body], len(body)
        while self._entries and self._entries[0][0] == kind and size + len(self._entries[0][1]) <= CHUNK:
            body = self._entries.popleft()[1]
            parts.append(body)
            size += len(body)
        return self._report(kind, b"\n".join(parts))

    def _report(self, kind: str, body: bytes) -> Report:
        self._number += 1
        return Report(self.id, self.token, self._number, kind, body)

    async def drain(self) -> None:
        """Returns when all that was said is written, or is known to be refused. Raises TaskError if output was."""
        if self.dropped > self._told and not self.full:
            count, self._told = self.dropped - self._told, self.dropped
            self._put("log", b'{"level":"warning","message":"%d log entries were dropped"}' % count)
        self._due = 0.0  # the last progress need not wait for its time
        if self._more is not None:
            self._more.set()
        while not self.full and (self._pending or (self._flight is not None and not self._flight.done())):
            self._start()
            if self._flight is not None:
                await asyncio.shield(self._flight)
        if self._refused is not None:
            raise self._refused

    @property
    def _pending(self) -> bool:
        return bool(self._entries) or self._progress is not None

    def abandon(self) -> None:
        """Stops saying anything: the attempt is no longer this worker's."""
        if self._flight is not None:
            self._flight.cancel()
        self._stop("over", "")


def _too_large() -> TaskError:
    return TaskError("too_large", f"the output exceeds {LIMIT >> 20} MiB", retryable=False)
