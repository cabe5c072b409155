"""Threads for plain `def` tasks: a bounded number, and a channel from each back to the event loop."""

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
from typing import TYPE_CHECKING, Any, TypeVar

from tandem_worker.errors import TaskError
from tandem_worker.executors.portal import Desk, facts
from tandem_worker.jobs.channel import Report
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob
from tandem_worker.task import call

if TYPE_CHECKING:
    from tandem_worker.task import Task

MAX_UNDER_WAY = 256 << 10  # bytes of reports on their way from a thread to the loop
T = TypeVar("T")
_PATIENCE = 1.0  # seconds after which a waiting thread looks whether the loop is still there


class Threads:
    """At most `limit` threads, started when needed and kept.

    They are daemon threads: code that was given up (cancelled, timed out) cannot be stopped and
    keeps its thread until it ends, but it does not keep the process alive. Tasks beyond the limit
    wait, within their own timeouts.
    """

    def __init__(self, limit: int = 100) -> None:
        self._limit = limit
        self._count = 0
        self._idle = threading.Semaphore(0)
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    async def run(self, task: "Task", job: Job, payload: Any) -> Any:
        """Call the task's function in a thread. Raises what it raises; cancelled, it stops waiting at once."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        channel = ThreadChannel(loop, job, done)
        sync = SyncJob(channel, **facts(job))
        context = contextvars.copy_context()

        def work() -> None:
            if channel.is_over():
                return
            try:
                result = context.run(call, task, sync, payload)
            except BaseException as error:  # noqa: BLE001 - also SystemExit: it belongs to the job, not to this thread
                channel.settle(None, error)
            else:
                channel.settle(result, None)

        self._submit(work)
        try:
            await asyncio.wait({done})
            # Also before a failure is told: the log says most just then.
            refused = await channel.flush()
            if refused is not None and done.exception() is None:
                raise refused
            return done.result()
        finally:
            if not done.cancel():
                done.exception()  # asyncio complains of one that nobody looked at
            await channel.close()

    async def call(self, function: Callable[[], T]) -> T:
        """Call what would block the loop. Raises what it raises; cancelled, it stops waiting, and the code goes on."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def tell(settle: Callable[[Any], None], what: Any) -> None:
            if not done.done():
                settle(what)

        def work() -> None:
            if done.done():
                return  # nobody waits for it any more
            try:
                told = partial(tell, done.set_result, context.run(function))
            except BaseException as error:  # noqa: BLE001 - also SystemExit: it belongs to the job, not to this thread
                told = partial(tell, done.set_exception, _tame(error))
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(told)

        self._submit(work)
        return await done

    def _submit(self, work: Callable[[], None]) -> None:
        self._work.put(work)
        if not self._idle.acquire(blocking=False) and self._count < self._limit:
            self._count += 1
            threading.Thread(target=self._serve, name=f"task-{self._count}", daemon=True).start()

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work
            self._idle.release()

    def close(self) -> None:
        """End the idle threads; one that still runs a task ends after it."""
        for _ in range(self._count):
            self._work.put(None)


class ThreadChannel:
    """Carries one job's reports from its thread (or threads that its code started) to the loop, in order.

    Thread and loop share no lock: a thread that holds one while it waits for its turn would hold up
    every other job.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, job: Job, done: "asyncio.Future[Any]"
    ) -> None:
        self._loop = loop
        self._job = job
        self._done = done
        self._desk = Desk(job)
        self._over = False
        self._sending = threading.Lock()  # among the code's own threads
        self._room = threading.Event()
        self._reports: deque[tuple[Report, bytes]] = deque()
        self._sent = 0  # bytes, counted by the thread
        self._carried = 0  # bytes, counted by the loop
        self._awake = False
        self._carrier: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._calls: set[Future[tuple[Any, bytes]]] = set()

    # -------------------------------------------------------------------------------- in the thread

    def is_over(self) -> bool:
        return self._over or self._job.cancelled

    def send(self, report: Report, body: bytes) -> None:
        with self._sending:
            while not self.is_over() and self._sent - self._carried > MAX_UNDER_WAY:
                self._room.clear()
                if self._sent - self._carried > MAX_UNDER_WAY:
                    self._room.wait(_PATIENCE)
                self._check_loop()
            self._check()
            self._reports.append((report, body))
            self._sent += len(body)
            if not self._awake:
                self._awake = True
                self._soon(self._wake)

    def call(self, operation: str, argument: Any, body: bytes = b"") -> tuple[Any, bytes]:
        self._check()
        answer = asyncio.run_coroutine_threadsafe(
            self._desk.answer(operation, argument, body), self._loop
        )
        self._calls.add(answer)
        try:
            while True:
                try:
                    return answer.result(_PATIENCE)
                except TimeoutError:
                    if answer.done():
                        raise
                    self._check()
        except FutureCancelledError:
            raise asyncio.CancelledError("the job is over") from None
        finally:
            self._calls.discard(answer)
            answer.cancel()

    def settle(self, result: Any, error: BaseException | None) -> None:
        """Tell the loop how the function ended."""
        if error is not None:
            error = _tame(error)
        if not self._over:
            try:
                self._soon(lambda: self._set(result, error))
            except asyncio.CancelledError:
                return

    def _check(self) -> None:
        self._check_loop()
        if self.is_over():
            raise asyncio.CancelledError("the job is over")

    def _check_loop(self) -> None:
        if self._loop.is_closed():
            self._over = True

    def _soon(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closed
            self._over = True
            raise asyncio.CancelledError("the job is over") from None

    # ---------------------------------------------------------------------------------- on the loop

    def _wake(self) -> None:
        if not self._over and not self._carrying():
            self._carrier = asyncio.create_task(self._carry())

    def _carrying(self) -> bool:
        return self._carrier is not None and not self._carrier.done()

    async def _carry(self) -> None:
        sink = self._job.sink
        try:
            while True:
                self._awake = False  # before the look: what is appended after it wakes again
                if not self._reports:
                    return
                while self._reports:
                    report, body = self._reports.popleft()
                    if report == "output":
                        await sink.output(body)
                    elif report == "progress":
                        await sink.progress(body)
                    else:
                        sink.log(body)
                    self._carried += len(body)
                    self._room.set()
        except Exception as error:  # noqa: BLE001 - the sink's: it ends the job
            self._error = error
            self._over = True
            self._room.set()
            self._set(None, error)

    def _set(self, result: Any, error: BaseException | None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(result)
        else:
            self._done.set_exception(error)

    async def flush(self) -> Exception | None:
        """Wait until every report is carried, or the sink has refused one, with the error that is returned."""
        while self._error is None and (self._awake or self._carrying()):
            self._wake()
            if self._carrier is not None:
                await self._carrier
        return self._error

    async def close(self) -> None:
        """The job is over: its code's next report raises, what it waits for is cancelled."""
        self._over = True
        self._room.set()
        if self._carrier is not None:
            self._carrier.cancel()
        for answer in tuple(self._calls):
            answer.cancel()
        await self._desk.close()


def _tame(error: BaseException) -> BaseException:
    """The error as it may be raised on the loop: one that ends loops, or that futures refuse, fails the job alone."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    name = type(error).__name__
    return TaskError(f"exception:{name}", f"the task's code raised {name}", retryable=True)
