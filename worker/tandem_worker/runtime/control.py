"""What a worker hears besides jobs: cancels, leases that it lost, and that Redis has forgotten it.

bell:   this worker's own, rung for a cancel, or for a job that was set aside for want of a worker
        like it
heart:  a thread that keeps the leases (shared/tandem_shared/queue/heartbeat.py) and brings the same
        news, should the bell
        be missed
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

import structlog

from tandem_shared.backoff import Backoff
from tandem_shared.errors import Unavailable
from tandem_shared.queue.heartbeat import Heartbeat
from tandem_shared.queue.queue import Queue
from tandem_worker.runtime.run import Cause, Run

# seconds that the bell may be silent before it is waited for again; beats bring the news as well
SILENCE = 15.0
FORGET = 5.0  # seconds for a registration that is under way at the end

log = structlog.get_logger("worker")


class Calls(NamedTuple):
    """What the news lead to besides the end of a run."""

    claim: Callable[[], Awaitable[Any]]  # a job waits for this worker alone
    register: Callable[[], Awaitable[Any]]  # Redis does not know it (any more)
    unstarted: Callable[
        [str, Cause], None
    ]  # a job that does not run, and perhaps is not here either, is not to start


class News:
    """The news of one worker, and what it does about them; `runs` are its running jobs by id.

    `claiming` is held while a claim is under way.
    """

    def __init__(
        self,
        queue: Queue,
        url: str,
        runs: Mapping[str, Run],
        claiming: asyncio.Lock,
        calls: Calls,
        *,
        worker: str,
        tasks: str,
    ) -> None:
        self.doubt = False
        self._queue, self._runs, self._worker, self._tasks = queue, runs, worker, tasks
        self._claiming, self._calls = claiming, calls
        self._loop = asyncio.get_event_loop()
        self._registering: asyncio.Task[Any] | None = None
        self._settling: asyncio.Task[None] | None = None
        self._ended = False
        self.heart = Heartbeat(
            url,
            queue.prefix,
            worker=worker,
            catalogue=tasks,
            lease=queue.lease,
            on_beat=self._from_thread(self._beaten),
            on_unknown=self._from_thread(self._forgotten),
        )

    def _from_thread(self, function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            with contextlib.suppress(
                RuntimeError
            ):  # the loop has ended, and with it what the news were about
                self._loop.call_soon_threadsafe(function, *args)

        return call

    def distrust(self) -> None:
        """A connection failed: the leases are to be renewed before anything is claimed."""
        self.doubt = True

    async def listen(self) -> None:
        """Follows the bell until it is cancelled."""
        bells = self._queue.bells(self._worker)
        backoff = Backoff()
        try:
            while True:
                try:
                    word = await bells.wait(SILENCE)
                    backoff.reset()
                    if word is not None:
                        await self._heard(word)
                except Unavailable:
                    self.distrust()
                    await backoff.sleep()
        finally:
            await bells.close()

    async def _heard(self, word: str) -> None:
        kind, _, id = word.partition(" ")
        if kind == "cancel":
            if id not in self._runs:
                async with self._claiming:  # the claim that took the job may still be under way
                    pass
            self._stop([id], "cancel")
        else:
            await self._calls.claim()

    async def beat(self) -> None:
        """Renews the leases from the loop, and puts an end to the doubt."""
        self.doubt = False
        held = [(id, token) for id, (token, _) in self.heart.held.items()]
        try:
            for start in range(0, len(held), 500):
                portion = held[start : start + 500]
                _, lost, cancelled = await self._queue.beat(self._worker, self._tasks, portion)
                self._beaten(lost, cancelled)
        except Unavailable:
            self.distrust()
            raise

    async def say_draining(self) -> None:
        """Tells at once, as far as Redis answers, that this worker takes no more jobs; each later beat repeats it."""
        self.heart.draining = True
        with contextlib.suppress(Unavailable):
            await self._queue.beat(self._worker, self._tasks, [], draining=True)

    def _beaten(self, lost: Iterable[str], cancelled: Iterable[str]) -> None:
        self._stop(lost, "lost")
        self._stop(cancelled, "cancel")

    def _stop(self, ids: Iterable[str], cause: Cause) -> None:
        # Every beat repeats its news until the code has obeyed: only the first of a kind cancels
        # it.
        for id in ids:
            run = self._runs.get(id)
            if run is None:
                self._calls.unstarted(id, cause)
            elif run.cause not in (cause, "lost"):
                run.stop(cause)
                if cause == "cancel":
                    self._loop.call_later(self._queue.grace, self._overdue, run)

    def _overdue(self, run: Run) -> None:
        # Code that did not obey has just lost its lease. Settled now, the job is cancelled when its
        # grace ends, and not up to a second later, by the next tick.
        if self._ended or self._runs.get(run.claimed.id) is not run:
            return
        if self._settling is None or self._settling.done():
            self._settling = asyncio.ensure_future(self._settle())

    async def _settle(self) -> None:
        with contextlib.suppress(Unavailable):  # whoever ticks next does it
            await self._queue.tick()

    def _forgotten(self) -> None:
        # Redis lost its data, or the worker was silent for too long.
        if self._registering is None or self._registering.done():
            self._registering = asyncio.ensure_future(self._calls.register())

    async def end(self) -> None:
        """No more beats: what is still held is left to its lease."""
        self.heart.stop()
        self._ended = True
        tasks = {task for task in (self._registering, self._settling) if task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=FORGET)
