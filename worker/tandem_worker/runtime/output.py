"""What a running job says, on its way to Redis and on to the file store: buffered, in order, fenced, and written once.

One letter of a job is under way at a time; what is said meanwhile goes together in the next. So the
first item leaves at once, and a flood leaves in letters of a few chunks. When the job's stream in
Redis is long, its oldest part moves to the file store as a segment, while writing goes on; at the
end of an attempt the rest moves too, unless it is small. Writers wait while their job's buffer is
full: for Redis and the file store, never for readers.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from functools import cached_property
from itertools import islice
from typing import TypeVar

import structlog

from tandem_shared.backoff import Backoff, until_available
from tandem_shared.errors import Unavailable
from tandem_shared.files.store import FileStore
from tandem_shared.queue.batch import Batcher
from tandem_shared.queue.messages import Chunk, Report
from tandem_shared.queue.queue import Queue
from tandem_shared.streams.segments import write_segment
from tandem_worker.errors import TaskError
from tandem_worker.runtime.metrics import Spent, untold

CHUNK = 64 << 10  # bytes of one report
LETTER = 256 << 10  # bytes of the reports that go together
REPORTS = 8  # of a letter
BUFFER = (
    512 << 10
)  # bytes a job may have said without their being written: a letter under way, and the next one
SEGMENT = 2 << 20  # bytes that move to the file store at once
KEPT = 256 << 10  # bytes that an ended attempt leaves in Redis
MOVES = 4  # that a worker makes at once: each holds a segment twice
PACE = 0.1  # seconds between two reports of progress
TIDY = 5.0  # seconds for the end of an attempt's output to move
LINE_END = ord("\n")  # bytes are searched for a number much faster than for bytes

T = TypeVar("T")

log = structlog.get_logger("worker")


class Outbox:
    """The reports of all jobs of a worker, many a round trip, and their way on to the file store.

    `limit`: bytes that a job may say in all; `spent` is told of each round trip and each move.
    """

    def __init__(
        self, queue: Queue, store: FileStore, *, limit: int, spent: Spent = untold
    ) -> None:
        async def send(letters: list[list[Report]]) -> list[list[str]]:
            reports, began = [report for letter in letters for report in letter], time.monotonic()
            words = iter(await queue.report(reports, limit=limit))
            spent("report", time.monotonic() - began, len(reports))
            return [list(islice(words, len(letter))) for letter in letters]

        self.limit, self._spent = limit, spent
        self.clock = asyncio.get_running_loop().time
        self._queue, self._store = queue, store
        self._batch = Batcher(
            send, max_items=50, size=lambda letter: sum(len(one.body) for one in letter)
        )
        self._moves = asyncio.Semaphore(MOVES)

    async def send(self, letter: list[Report]) -> list[str]:
        """A word for each, see `Queue.report`. While Redis is away it is repeated; a repeat is not written twice."""
        return await until_available(lambda: self._batch.call(letter))

    async def move(self, id: str, token: str) -> int | None:
        """Moves the oldest part of a job's stream, about a segment, to the file store; what is left in Redis, bytes.

        None: the job is no longer held under this token. Raises Unavailable for a store that fails;
        waits for Redis.
        """
        async with self._moves:
            began = time.monotonic()
            chunks = await until_available(lambda: self._oldest(id))
            if not chunks:
                return 0
            segment = await write_segment(self._store, id, chunks)
            weight = sum(chunk.weight for chunk in chunks)
            left = await until_available(lambda: self._queue.archive(id, token, segment, weight))
            self._spent("archive", time.monotonic() - began, len(chunks))
            return left

    async def _oldest(self, id: str) -> list[Chunk]:
        found: list[Chunk] = []
        size, count = 0, 32
        while size < SEGMENT and (
            more := await self._queue.output(id, found[-1].stamp if found else 0, count)
        ):
            found += more
            size += sum(chunk.weight for chunk in more)
            # As many as are missing, by what the first ones weigh.
            count = max(1, min(1000, (SEGMENT - size) * len(found) // size))
        return found


class _Pack:
    """Values of one kind that go together as a report."""

    __slots__ = ("kind", "parts", "size")

    def __init__(self, kind: str) -> None:
        self.kind, self.size = kind, 0
        self.parts: list[bytes] = []


class JobOutput:
    """The sink of one attempt (see `job.Sink`). `seconds`: until it waits no longer for the file store."""

    # Most jobs say nothing: until they do, there is no more of this than the arguments.
    full = False
    stuck = False  # the file store does not take what should move there
    dropped = 0  # log entries for which there was no room
    _told = 0
    _refused: Exception | None = None
    _last: _Pack | None = None  # of the packs; the next value may have room in it
    _buffered = 0
    _number = 0
    _tail = 0  # bytes in Redis, as far as this attempt knows
    _progress: bytes | None = None
    _due = 0.0  # when the next progress may leave, on the loop's clock
    _more: asyncio.Event | None = None  # while progress waits for its time: something else came
    _room: asyncio.Event | None = None
    _flight: asyncio.Task[None] | None = None
    _moving: asyncio.Task[bool] | None = None

    def __init__(
        self,
        outbox: Outbox,
        id: str,
        token: str,
        lost: Callable[[], None] | None,
        *,
        seconds: float,
    ) -> None:
        self.id, self.token = id, token
        self.lost = lost
        self._outbox = outbox
        self._until = outbox.clock() + seconds

    @cached_property
    def _packs(self) -> deque[_Pack]:
        return deque()

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
            raise self._refused or self._too_large()
        self._put("output", item)

    def log(self, body: bytes) -> None:
        """One entry; when the buffer is full it is counted, and the count is told."""
        if self._buffered > BUFFER or self.full:
            self.dropped += 1
        else:
            self._put("log", body)

    def _put(self, kind: str, body: bytes) -> None:
        if LINE_END in body:
            body = body.replace(
                b"\n", b" "
            )  # a report has a value a line; in JSON a raw line end is only white space
        size = len(body) + 1  # a line end, or the end
        pack = self._last
        if pack is None or pack.kind != kind or pack.size + size > CHUNK + 1:
            self._last = pack = _Pack(kind)
            self._packs.append(pack)
        pack.parts.append(body)
        pack.size += size
        self._buffered += size
        if self._flight is None or self._flight.done():
            self._start()
        elif self._more is not None:
            self._more.set()

    def _start(self) -> None:
        if self._flight is None or self._flight.done():
            self._flight = asyncio.get_running_loop().create_task(self._fly())

    async def _fly(self) -> None:
        try:
            while letter := await self._next():
                while letter and not self.full:
                    letter = await self._send(letter)
        except Exception as error:  # noqa: BLE001 - a fault of ours or of Redis: the attempt must not count what it said
            self._fail(error)

    async def _send(self, letter: list[Report]) -> list[Report]:
        """What could not be written yet; there is room for it now."""
        words = await self._outbox.send(letter)
        for number, (report, word) in enumerate(zip(letter, words, strict=True)):
            if word == "wait":
                if await asyncio.shield(self._move()):
                    return letter[number:]
                self._fail(
                    TaskError(
                        "store_unavailable",
                        "the file store did not take the output",
                        retryable=True,
                    )
                )
                return []
            if word not in ("ok", "long"):
                self._stop(word, report.type)
                return []
            self._tail += len(report.body)
            if report.type != "progress":
                self._buffered -= len(report.body) + 1
            if word == "long":
                self._move()
        if self._room is not None and self._buffered <= BUFFER:
            self._room.set()
        return []

    def _move(self) -> "asyncio.Task[bool]":
        """Begins to move a segment to the file store, unless one is under way."""
        if self._moving is None or not self._moves:
            self._moving = asyncio.get_running_loop().create_task(self._moved())
        return self._moving

    async def _moved(self) -> bool:
        """Moves a segment, however often it takes; False: this attempt's time is over, or the attempt is."""
        backoff = Backoff()
        while True:
            try:
                async with asyncio.timeout_at(self._until):
                    left = await self._outbox.move(self.id, self.token)
            except TimeoutError:
                return False
            except Unavailable as error:
                if not self.stuck:
                    log.warning("output waits for the file store", job_id=self.id, error=str(error))
                self.stuck = True
                await backoff.sleep()
            except Exception as error:  # noqa: BLE001 - as in _fly
                self._fail(error)
                return False
            else:
                self.stuck = False
                if left is None:
                    self._stop("lost", "")
                    return False
                self._tail = left
                return True

    def _fail(self, error: Exception) -> None:
        self._refused = self._refused or error
        self._stop("failed", "")

    def _stop(self, word: str, kind: str) -> None:
        if word == "full" and (
            kind == "output" or any(pack.kind == "output" for pack in self._packs)
        ):
            self._refused = self._too_large()
        self.full = True  # nothing more is taken, whichever way it ended
        self._packs.clear()
        self._last = self._progress = None
        self._buffered = 0
        if self._room is not None:
            self._room.set()
        if word == "lost" and self.lost is not None:
            self.lost()

    def _too_large(self) -> TaskError:
        return TaskError(
            "too_large", f"the output exceeds {self._outbox.limit} bytes", retryable=False
        )

    async def _next(self) -> list[Report]:
        """The reports that leave together; none: there is nothing to say."""
        loop = asyncio.get_running_loop()
        while not self._packs:
            if self._progress is None:
                return []
            wait = self._due - loop.time()
            if wait <= 0:
                return [self._take_progress()]
            self._more = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._more.wait()
            self._more = None
        letter: list[Report] = []
        size = 0
        if self._progress is not None and self._due <= loop.time():
            letter.append(self._take_progress())  # a flood of output must not hold it up
        while (
            self._packs
            and len(letter) < REPORTS
            and (not letter or size + self._packs[0].size <= LETTER)
        ):
            pack = self._packs.popleft()
            size += pack.size
            letter.append(self._report(pack.kind, b"\n".join(pack.parts)))
        if not self._packs:
            self._last = None
        return letter

    def _take_progress(self) -> Report:
        body, self._progress = self._progress or b"", None
        self._due = asyncio.get_running_loop().time() + PACE
        return self._report("progress", body)

    def _report(self, kind: str, body: bytes) -> Report:
        self._number += 1
        return Report(self.id, self.token, self._number, kind, body)

    async def drain(self) -> None:
        """Returns when all that was said is written, or is known to be refused. Raises TaskError if output was."""
        if self._flight is None:
            return  # nothing was said
        if self.dropped > self._told and not self.full:
            count, self._told = self.dropped - self._told, self.dropped
            self._put("log", b'{"level":"warning","message":"%d log entries were dropped"}' % count)
        self._due = 0.0  # the last progress need not wait for its time
        if self._more is not None:
            self._more.set()
        while not self.full and (
            self._pending or (self._flight is not None and not self._flight.done())
        ):
            self._start()
            if self._flight is not None:
                await asyncio.shield(self._flight)
        await self._tidy()
        if self._refused is not None:
            raise self._refused

    async def _tidy(self) -> None:
        """Moves the rest, so that final jobs do not fill Redis; what cannot be moved soon stays there."""
        if self._tail <= KEPT and not self._moves:
            return
        try:
            async with asyncio.timeout(TIDY):
                moved = True
                while moved and not self.full and (self._tail > KEPT or self._moves):
                    moved = await asyncio.shield(self._move())
        except TimeoutError:
            log.warning("the end of the output stays in Redis", job_id=self.id, bytes=self._tail)
            if self._moving is not None:
                self._moving.cancel()

    @property
    def _moves(self) -> bool:
        return self._moving is not None and not self._moving.done()

    @property
    def _pending(self) -> bool:
        return bool(self._packs) or self._progress is not None

    def abandon(self) -> None:
        """Stops saying anything: the attempt is no longer this worker's."""
        if self._flight is None:
            self.full = True  # nothing was said, and nothing will be
            return
        for task in (self._flight, self._moving):
            if task is not None:
                task.cancel()
        self._stop("over", "")
