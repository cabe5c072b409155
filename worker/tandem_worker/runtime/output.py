"""A running job's reports on their way to Redis: buffered, in order, fenced, and written once.

One batch of a job's reports is sent at a time, and what arrives meanwhile is sent together in the
next: the first item is sent at once, and a flood in a few large chunks. When the job's stream
in Redis is long, its oldest part moves to the file store as a segment while writing continues; at
the end of an attempt the rest moves too, unless it is small. Writers wait while their job's buffer
is full: for Redis and the file store, never for readers.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Literal

import structlog

from tandem_shared.backoff import Backoff
from tandem_shared.errors import Unavailable
from tandem_shared.queue.messages import Report
from tandem_worker.errors import TaskError
from tandem_worker.runtime.outbox import Outbox
from tandem_worker.runtime.waiting import wait_first

CHUNK_BYTES = 64 << 10  # of one report
BATCH_BYTES = 256 << 10  # of the reports that are sent together
BATCH_REPORTS = 8
BUFFER_BYTES = 512 << 10  # not yet written: the batch being sent, and the next one
KEEP_BYTES = 256 << 10  # that an ended attempt leaves in Redis
PROGRESS_SECONDS = 0.1  # between two reports of progress
TIDY_SECONDS = 5.0  # to move the end of an attempt's output
LINE_END = ord("\n")  # `in` finds an int in bytes much faster than bytes

log = structlog.get_logger("worker")


class _Pack:
    """Values of one kind that are sent as one report."""

    __slots__ = ("kind", "parts", "size")

    def __init__(self, kind: str) -> None:
        self.kind, self.size = kind, 0
        self.parts: list[bytes] = []


class JobOutput:
    """The sink of one attempt, see `jobs.reports.Sink`.

    `on_lost` is called when the attempt turns out to have lost its job, or when Redis has lost what
    it wrote ('torn'), and set to None when the attempt is over. `store_seconds` from now on, it
    stops waiting for the file store.
    """

    # Most jobs report nothing: defaults on the class keep an attempt cheap.
    full = False  # takes no more reports: too many, or the attempt is over
    stuck = False  # the file store does not take a segment
    written = 0  # number of the last report that Redis has
    dropped = 0  # log entries for which there was no room
    _dropped_logged = 0
    _packs: deque[_Pack] | tuple[()] = ()
    _error: Exception | None = None  # raised by `output` and `drain`
    _last: _Pack | None = None  # of the packs; it may have room for the next value
    _buffered = 0  # bytes
    _number = 0  # of the last report
    _in_redis = 0  # bytes, as far as this attempt knows
    _progress: bytes | None = None
    _progress_due = 0.0  # when the next one may be sent, on the loop's clock
    _woken: asyncio.Event | None = None  # ends the wait for progress to become due
    _room: asyncio.Event | None = None
    _writing: asyncio.Task[None] | None = None
    _moving: asyncio.Task[bool] | None = None

    def __init__(
        self,
        outbox: Outbox,
        id: str,
        token: str,
        on_lost: Callable[[Literal["lost", "torn"]], None] | None,
        *,
        store_seconds: float,
    ) -> None:
        self.id, self.token = id, token
        self.on_lost = on_lost
        self._outbox = outbox
        self._loop = outbox.loop
        self._store_until = self._loop.time() + store_seconds

    async def progress(self, body: bytes) -> None:
        """Report progress. It replaces earlier progress that has not been sent."""
        if not self.full:
            self._progress = body
            self._write()

    async def output(self, item: bytes) -> None:
        """Report one item. Raises TaskError `too_large` once the job has reported all it may."""
        while self._buffered > BUFFER_BYTES and not self.full:
            self._room = self._room or asyncio.Event()
            self._room.clear()
            await self._room.wait()
        if self.full:
            raise self._error or self._too_large()
        self._put("output", item)

    def log(self, body: bytes) -> None:
        """Report one log entry. While the buffer is full, entries are dropped and counted."""
        if self._buffered > BUFFER_BYTES or self.full:
            self.dropped += 1
        else:
            self._put("log", body)

    def _put(self, kind: str, body: bytes) -> None:
        if LINE_END in body:
            # A report has one value per line; in JSON a raw line end can only be white space.
            body = body.replace(b"\n", b" ")
        size = len(body) + 1  # with its line end
        pack = self._last
        if pack is None or pack.kind != kind or pack.size + size > CHUNK_BYTES + 1:
            self._last = pack = _Pack(kind)
            self._packs = self._packs or deque()
            self._packs.append(pack)
        pack.parts.append(body)
        pack.size += size
        self._buffered += size
        if self._woken is not None:
            self._woken.set()
        else:
            self._write()

    def _write(self) -> "asyncio.Task[None]":
        """Start writing, unless that is under way."""
        if self._writing is None or self._writing.done():
            self._writing = self._loop.create_task(self._write_all())
        return self._writing

    async def _write_all(self) -> None:
        try:
            while reports := await self._next_batch():
                while reports and not self.full:
                    reports = await self._send(reports)
        except Exception as error:  # noqa: BLE001 - ours or Redis': an attempt whose output is incomplete must fail
            self._fail(error)

    async def _send(self, reports: list[Report]) -> list[Report]:
        """Send the reports; return those to send again, now that a move has made room for them."""
        answers = await self._outbox.send(reports)
        for number, (report, (answer, _)) in enumerate(zip(reports, answers, strict=True)):
            if answer == "behind":
                # Redis came back older than it was.
                if await self._outbox.resend(self.id, self.token) == report.number - 1:
                    return reports[number:]
                self._lose("torn")
                return []
            if answer == "wait":
                if await asyncio.shield(self._move()):
                    return reports[number:]
                message = "the file store did not take the job's output in time"
                self._fail(TaskError("store_unavailable", message, retryable=True))
                return []
            if answer not in ("ok", "long"):
                self._refuse(answer, report.type)
                return []
            self.written = report.number
            self._in_redis += len(report.body)
            if report.type != "progress":
                self._buffered -= len(report.body) + 1
            if answer == "long":
                self._move()
        if self._room is not None and self._buffered <= BUFFER_BYTES:
            self._room.set()
        return []

    def _move(self) -> "asyncio.Task[bool]":
        """Start moving a segment to the file store, unless that is under way."""
        if self._moving is None or self._moving.done():
            self._moving = self._loop.create_task(self._move_segment())
        return self._moving

    async def _move_segment(self) -> bool:
        """Move a segment, however often that fails. False: the time or the attempt is over."""
        backoff = Backoff()
        while True:
            try:
                async with asyncio.timeout_at(self._store_until):
                    left = await self._outbox.move(self.id, self.token)
            except TimeoutError:
                return False
            except Unavailable as error:
                if not self.stuck:
                    log.warning("output waits for the file store", job_id=self.id, error=str(error))
                self.stuck = True
                await backoff.sleep()
            except Exception as error:  # noqa: BLE001 - as in _write_all
                self._fail(error)
                return False
            else:
                self.stuck = False
                if left is None:
                    self._lose("lost")
                    return False
                self._in_redis = left
                return True

    def _refuse(self, answer: str, kind: str) -> None:
        """Stop after Redis has rejected a report of this kind."""
        if answer == "full" and (
            kind == "output" or any(pack.kind == "output" for pack in self._packs)
        ):
            self._error = self._too_large()
        if answer == "lost":
            self._lose("lost")
        else:
            self._stop()

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._stop()

    def _lose(self, cause: Literal["lost", "torn"]) -> None:
        self._stop()
        if self.on_lost is not None:
            self.on_lost(cause)

    def _stop(self) -> None:
        """Drop what is buffered, and take no more."""
        self.full = True
        self._packs = ()
        self._last = self._progress = None
        self._buffered = 0
        if self._room is not None:
            self._room.set()

    def _too_large(self) -> TaskError:
        limit = self._outbox.max_output_bytes
        message = f"the job's output exceeds the limit of {limit} bytes (TANDEM_MAX_OUTPUT)"
        return TaskError("too_large", message, retryable=False)

    async def _next_batch(self) -> list[Report]:
        """The reports to send together; empty when nothing is left to write."""
        while not self._packs:
            if self._progress is None:
                return []
            seconds = self._progress_due - self._loop.time()
            if seconds <= 0:
                return [self._take_progress()]
            self._woken = asyncio.Event()
            await wait_first(self._woken.wait(), timeout=seconds)
            self._woken = None
        reports: list[Report] = []
        size = 0
        if self._progress is not None and self._progress_due <= self._loop.time():
            reports.append(self._take_progress())  # a flood of output must not delay it
        while self._packs and len(reports) < BATCH_REPORTS:
            pack = self._packs[0]
            size += pack.size
            if reports and size > BATCH_BYTES:
                break
            self._packs.popleft()
            reports.append(self._report(pack.kind, b"\n".join(pack.parts)))
        if not self._packs:
            self._last = None
        return reports

    def _take_progress(self) -> Report:
        body, self._progress = self._progress or b"", None
        self._progress_due = self._loop.time() + PROGRESS_SECONDS
        return self._report("progress", body)

    def _report(self, kind: str, body: bytes) -> Report:
        self._number += 1
        return Report(self.id, self.token, self._number, kind, body)

    async def drain(self) -> None:
        """Return once everything is written. Raises TaskError if output was rejected."""
        if self._writing is None:
            return  # nothing was reported
        if self.dropped > self._dropped_logged and not self.full:
            count = self.dropped - self._dropped_logged
            self._dropped_logged = self.dropped
            self._put("log", b'{"level":"warning","message":"%d log entries were dropped"}' % count)
        self._progress_due = 0.0  # the last progress need not wait
        if self._woken is not None:
            self._woken.set()
        while not self.full and (
            self._packs or self._progress is not None or not self._writing.done()
        ):
            await asyncio.shield(self._write())
        await self._tidy()
        if self._error is not None:
            raise self._error

    async def _tidy(self) -> None:
        """Move the rest, so that final jobs do not fill Redis; what takes too long stays there."""
        try:
            async with asyncio.timeout(TIDY_SECONDS):
                moved = True
                while moved and not self.full and self._to_move():
                    moved = await asyncio.shield(self._move())
        except TimeoutError:
            log.warning("output stays in Redis", job_id=self.id, bytes=self._in_redis)
            if self._moving is not None:
                self._moving.cancel()

    def _to_move(self) -> bool:
        moving = self._moving is not None and not self._moving.done()
        return moving or self._in_redis > KEEP_BYTES

    def abandon(self) -> None:
        """Report nothing more: the attempt is over, or has lost its job."""
        if self._writing is None:
            self.full = True  # nothing was reported
            return
        for task in (self._writing, self._moving):
            if task is not None:
                task.cancel()
        self._stop()
