"""Threads for `def` tasks: a bounded number, each with a channel back to the event loop."""

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError as FutureCancelledError
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Literal, TypeVar

from tandem_worker.errors import TaskError
from tandem_worker.executors.portal import Portal, deliver
from tandem_worker.executors.zombies import Zombies
from tandem_worker.jobs.channel import Report
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob
from tandem_worker.task import Task, call

MAX_BUFFERED_BYTES = 256 << 10  # of reports on their way from a thread to the loop
LOOP_CHECK_SECONDS = 1.0  # between two checks of a waiting thread whether the loop still runs

T = TypeVar("T")


class Call:
    """A function on its way through a thread."""

    __slots__ = ("abandoned", "state", "work")

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.state: Literal["waiting", "running", "over"] = "waiting"
        self.abandoned = False  # nobody waits for it any more


class ThreadPool:
    """At most `limit` threads, started when needed and kept.

    They are daemon threads: code that was abandoned (cancelled, timed out) cannot be stopped, but
    it does not keep the process alive. Its thread leaves the pool, so that it takes no other job's
    place; it is a zombie if it still runs `grace` seconds later. Calls beyond the limit wait.
    """

    def __init__(self, limit: int, zombies: Zombies, grace: float) -> None:
        self._limit, self._zombies, self._grace = limit, zombies, grace
        self._lock = threading.Lock()  # of the counts, and of each call's flags
        self._count = 0  # threads, except those of abandoned calls
        self._busy = 0  # calls that run or wait for a thread
        self._started = 0
        self._work: SimpleQueue[Call | None] = SimpleQueue()

    async def run(self, task: Task, job: Job, payload: Any) -> Any:
        """Call a task's function, as `call` does, and deliver its reports."""
        channel = ThreadChannel(asyncio.get_running_loop(), job)
        sync_job = SyncJob(channel=channel, **job.facts())
        done, running = self._submit(partial(call, task, sync_job, payload))
        try:
            await asyncio.wait({done, channel.failed}, return_when=asyncio.FIRST_COMPLETED)
            # Before a failure too: the last log lines are those that explain it.
            rejected = await channel.flush()
            if rejected is not None and (not done.done() or done.exception() is None):
                raise rejected
            return done.result()
        finally:
            if done.cancel():
                self._abandon(running, task=job.task, job_id=job.id)
            else:
                done.exception()  # retrieved, or asyncio would log it
            await channel.close()

    async def call(self, function: Callable[[], T]) -> T:
        """Call a function in a thread, and raise what it raises. Cancelling ends only the wait."""
        done, running = self._submit(function)
        try:
            return await done
        finally:
            if done.cancelled():
                self._abandon(running)

    def _submit(self, function: Callable[[], T]) -> "tuple[asyncio.Future[T], Call]":
        """Call the function in a thread, unless the future is cancelled before its turn."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def settle(set_: Callable[[Any], None], outcome: Any) -> None:
            if not done.done():
                set_(outcome)

        def work() -> None:
            if done.done():
                return
            try:
                callback = partial(settle, done.set_result, context.run(function))
            except BaseException as error:  # noqa: BLE001 - also SystemExit: it fails the job, and not this thread
                callback = partial(settle, done.set_exception, _as_exception(error))
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(callback)

        call = Call(work)
        with self._lock:
            self._busy += 1
        self._work.put(call)
        self._start_missing()
        return done, call

    def _start_missing(self) -> None:
        with self._lock:
            if self._busy <= self._count or self._count >= self._limit:
                return
            self._count += 1
            self._started += 1
        loop = asyncio.get_running_loop()
        name = f"task-{self._started}"
        threading.Thread(target=self._serve, args=(loop,), name=name, daemon=True).start()

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        while (call := self._work.get()) is not None:
            with self._lock:
                call.state = "over" if call.abandoned else "running"
            if call.state == "over":
                continue
            call.work()
            with self._lock:
                call.state = "over"
                if not call.abandoned:
                    self._busy -= 1
            if call.abandoned:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(self._zombies.stopped, call)
                return
            del call

    def _abandon(self, call: Call, **facts: str) -> None:
        """Wait for the call no more: one that runs takes its thread with it."""
        with self._lock:
            if call.state == "over":
                return
            call.abandoned = True
            self._busy -= 1
            if call.state == "waiting":
                return
            self._count -= 1
        self._zombies.left(call, runs="in a thread", **facts)
        asyncio.get_running_loop().call_later(self._grace, self._zombies.count, call)
        self._start_missing()

    def close(self) -> None:
        """End the idle threads; a thread that still runs a task ends after it."""
        for _ in range(self._count):
            self._work.put(None)


class ThreadChannel:
    """Carries a job's reports to the loop in order, from its thread and threads its code started.

    Thread and loop share no lock: a thread that held one while waiting for its turn would hold up
    every other job.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, job: Job) -> None:
        self._loop = loop
        self._job = job
        self._portal = Portal(job)
        self.failed: asyncio.Future[None] = (
            loop.create_future()
        )  # done when the sink rejects a report
        self._over = False
        self._sending = threading.Lock()  # among the code's own threads
        self._room = threading.Event()
        self._reports: deque[tuple[Report, bytes]] = deque()
        self._sent = 0  # bytes, counted by the thread
        self._carried = 0  # bytes, counted by the loop
        self._awake = False
        self._carrier: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._calls: set[Future[Any]] = set()

    # These methods run in the thread.

    def is_over(self) -> bool:
        return self._over or self._job.cancelled

    def send(self, report: Report, body: bytes) -> None:
        with self._sending:
            while not self.is_over() and self._sent - self._carried > MAX_BUFFERED_BYTES:
                self._room.clear()
                if self._sent - self._carried > MAX_BUFFERED_BYTES:
                    self._room.wait(LOOP_CHECK_SECONDS)
                self._check_loop()
            self._check()
            self._reports.append((report, body))
            self._sent += len(body)
            if not self._awake:
                self._awake = True
                try:
                    self._loop.call_soon_threadsafe(self._wake)
                except RuntimeError:  # the loop is closed
                    self._over = True
                    self._check()

    def call(self, operation: str, argument: Any, body: bytes = b"") -> Any:
        self._check()
        answer = asyncio.run_coroutine_threadsafe(
            self._portal.answer(operation, argument, body), self._loop
        )
        self._calls.add(answer)
        try:
            while True:
                try:
                    return answer.result(LOOP_CHECK_SECONDS)
                except TimeoutError:
                    if answer.done():
                        raise
                    self._check()
        except FutureCancelledError:
            raise asyncio.CancelledError("the job is over") from None
        finally:
            self._calls.discard(answer)
            answer.cancel()

    def _check(self) -> None:
        self._check_loop()
        if self.is_over():
            raise asyncio.CancelledError("the job is over")

    def _check_loop(self) -> None:
        if self._loop.is_closed():
            self._over = True

    # These methods run on the loop.

    def _wake(self) -> None:
        if not self._over and not self._carrying():
            self._carrier = asyncio.create_task(self._carry())

    def _carrying(self) -> bool:
        return self._carrier is not None and not self._carrier.done()

    async def _carry(self) -> None:
        try:
            while True:
                self._awake = False  # before the check: a later report wakes the loop again
                if not self._reports:
                    return
                while self._reports:
                    report, body = self._reports.popleft()
                    await deliver(self._job.sink, report, body)
                    self._carried += len(body)
                    self._room.set()
        except Exception as error:  # noqa: BLE001 - whatever the sink raises ends the job
            self._error = error
            self._over = True
            self._room.set()
            self.failed.set_result(None)

    async def flush(self) -> Exception | None:
        """Wait until all reports are delivered; return the error if the sink has rejected one."""
        while self._error is None and (self._awake or self._carrying()):
            self._wake()
            if self._carrier is not None:
                await self._carrier
        return self._error

    async def close(self) -> None:
        """End the job: its code's next report raises, and calls that it waits for are cancelled."""
        self._over = True
        self._room.set()
        if self._carrier is not None:
            self._carrier.cancel()
        for answer in tuple(self._calls):
            answer.cancel()
        await self._portal.close()


def _as_exception(error: BaseException) -> BaseException:
    """An error that a future can take: StopIteration is not allowed, SystemExit ends the loop."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    name = type(error).__name__
    return TaskError(f"exception:{name}", f"the task's code raised {name}", retryable=True)
