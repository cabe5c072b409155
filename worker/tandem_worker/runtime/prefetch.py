"""Jobs claimed before a slot is free for them, so that a freed slot has its next job at once.

Otherwise a worker with short jobs would idle during every claim, and Redis between claims. Only as
many are claimed as will start within START_SECONDS at the speed of recent attempts: none where
attempts take seconds. If longer jobs occupy all slots, the waiting ones are handed back, uncharged.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import NamedTuple

from tandem_shared.queue.messages import Claimed, Finish, Held
from tandem_worker.runtime.deadlines import TIMER_ERROR_SECONDS
from tandem_worker.runtime.held_leases import Leases
from tandem_worker.runtime.outcomes import cancelled, released
from tandem_worker.runtime.run import Cause

START_SECONDS = 0.02
MAX_WAIT_SECONDS = 0.25  # then they are handed back
MAX_JOBS_PER_SLOT = 3
MAX_JOBS = 400
MAX_BYTES = 1 << 20  # of payload; above it, no more are claimed
LAST_WEIGHT = 1 / 32  # of the last attempt in the moving average of durations


class Prefetched(NamedTuple):
    """A waiting job, and when it was claimed on the event loop's clock."""

    job: Claimed
    since: float


class Prefetch:
    """A first-in, first-out queue; `put` writes the outcome of jobs that will not start."""

    def __init__(
        self,
        slots: int,
        lease_seconds: float,
        clock: asyncio.AbstractEventLoop,
        leases: Leases,
        put: Callable[[Finish], None],
    ) -> None:
        self._slots, self._lease_seconds = slots, lease_seconds
        self._clock, self._leases, self._put = clock, leases, put
        self._waiting: dict[str, Prefetched] = {}  # by job id
        self._bytes = 0
        # At this average duration nothing is prefetched. It is assumed until some attempts have
        # run.
        self._slow_seconds = 2 * slots * START_SECONDS
        self._average_seconds = self._slow_seconds
        self._watching = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def room(self) -> int:
        """How many more jobs may be prefetched now."""
        if self._bytes >= MAX_BYTES:
            return 0
        soon = int(self._slots * START_SECONDS / max(self._average_seconds, 1e-6))
        return max(0, min(MAX_JOBS, MAX_JOBS_PER_SLOT * self._slots, soon) - len(self._waiting))

    def observe(self, seconds: float) -> None:
        """Count an attempt that took `seconds` in the average duration."""
        capped = min(seconds, self._slow_seconds)
        self._average_seconds += (capped - self._average_seconds) * LAST_WEIGHT

    def add(self, job: Claimed) -> None:
        """Queue the job for a free slot, and hold its lease meanwhile."""
        self._remove(job.id)  # an earlier claim of the job, whose lease has ended since
        self._waiting[job.id] = Prefetched(job, self._clock.time())
        self._bytes += len(job.payload)
        self._leases.hold(job, MAX_WAIT_SECONDS + self._lease_seconds)
        if not self._watching:
            self._watch()

    def pop(self) -> Prefetched | None:
        """The job to start next. Those whose lease may have ended meanwhile are handed back."""
        oldest = self._clock.time() - MAX_WAIT_SECONDS - self._lease_seconds
        while self._waiting:
            waiting = self._remove(next(iter(self._waiting)))
            if waiting is None or waiting.since > oldest:
                return waiting
            # Written before later attempts start, so that this one does not count as started.
            self._put(released(waiting.job))
        return None

    def drop(self, one: Held, cause: Cause) -> None:
        """Do not start this attempt; does nothing if it is not waiting here."""
        waiting = self._waiting.get(one.id)
        if waiting is None or waiting.job.token != one.token:
            return
        self._remove(one.id)
        if cause == "cancel":
            self._put(cancelled(waiting.job))
        else:
            self._leases.release(one.id, one.token)

    def hand_back(self) -> None:
        """Release all waiting jobs, uncharged, to other workers."""
        while (waiting := self.pop()) is not None:
            self._put(released(waiting.job))

    def take_all(self) -> list[Claimed]:
        """Take all waiting jobs, from any thread; the caller hands them back."""
        taken: list[Claimed] = []
        while self._waiting:
            with contextlib.suppress(KeyError):  # the loop goes on and has started it
                waiting = self._waiting.pop(next(iter(self._waiting)))
                self._bytes -= len(waiting.job.payload)
                self._leases.release(waiting.job.id, waiting.job.token)
                taken.append(waiting.job)
        return taken

    def _remove(self, id: str) -> Prefetched | None:
        waiting = self._waiting.pop(id, None)
        if waiting is not None:
            self._bytes -= len(waiting.job.payload)
        return waiting

    def _watch(self) -> None:
        self._watching = True
        self._clock.call_at(self._clock.time() + MAX_WAIT_SECONDS, self._check)

    def _check(self) -> None:
        self._watching = False
        now = self._clock.time() + TIMER_ERROR_SECONDS
        oldest = next(iter(self._waiting.values()), None)
        if oldest is not None and oldest.since + MAX_WAIT_SECONDS <= now:
            self.hand_back()
            self._average_seconds = self._slow_seconds
        if self._waiting:
            self._watch()
