"""Watches the event loop from a thread of its own: code that does not return blocks all jobs.

A blocked loop can neither time a job out nor hand one back, while the heartbeat goes on renewing
every lease. So the thread says who blocks it, and ends the process once nothing else is left.
"""

import asyncio
import contextlib
import faulthandler
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

import structlog

CHECK_SECONDS = 0.25
FIRST_LINE_SECONDS, LINE_FACTOR = 1.0, 3.0  # of standstill: the lines come after 1, 3, 9, 27 … s
# Native code that never gives the interpreter back stops this thread as well. Then a timer that
# needs no interpreter ends the process, after so many leases. It also ends a process that was
# suspended for that long, once that goes on: its jobs are elsewhere by then.
NATIVE_LEASES, NATIVE_SECONDS = 6.0, 60.0

log = structlog.get_logger("worker")


class Work(Protocol):
    """What runs on the loop, as the thread may look at it."""

    def about(self, task: "asyncio.Task[Any] | None") -> dict[str, Any]:
        """The job of an asyncio task, as fields of a log line; empty if it is not known."""

    def overstayed(self, task: "asyncio.Task[Any] | None") -> bool:
        """Whether the job has used up its timeout and its grace."""

    def hand_back_waiting(self) -> None:
        """Give jobs that have not started to other workers."""

    def hand_back_all(self) -> None:
        """Give all jobs away, as far as Redis answers; the process ends then."""


class Watchdog(threading.Thread):
    """Call `start` on the loop. `end` ends the process; `stop` ends the watch."""

    def __init__(
        self,
        work: Work,
        *,
        lease: float,
        end: Callable[[], Any],
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.blocked_seconds = 0.0  # for how long the loop stands still now
        self._work, self._end, self._check_seconds = work, end, check_seconds
        self._native_seconds = max(NATIVE_SECONDS, NATIVE_LEASES * lease)
        self._loop = asyncio.get_event_loop()
        self._loop_thread = 0
        self._turns = 0
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to watch the loop that runs in this thread."""
        self._loop_thread = threading.get_ident()
        self._turn()
        super().start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()
        faulthandler.cancel_dump_traceback_later()

    def _turn(self) -> None:
        self._turns += 1
        self._timer = self._loop.call_later(self._check_seconds, self._turn)

    def run(self) -> None:
        """Look until stopped."""
        seen, since, line, armed = -1, time.monotonic(), FIRST_LINE_SECONDS, 0.0
        while True:
            before = time.monotonic()
            if self._stopped.wait(self._check_seconds):
                return
            now = time.monotonic()
            if now - armed > self._native_seconds / 4:
                faulthandler.dump_traceback_later(self._native_seconds, exit=True)
                armed = now
            if now - before > self._check_seconds + FIRST_LINE_SECONDS:
                # The whole process was suspended: the loop has not had its turn yet.
                since = max(since, now - self._check_seconds)
            if self._turns != seen:
                if line > FIRST_LINE_SECONDS:
                    log.warning("the event loop goes on", blocked_seconds=round(now - since, 1))
                seen, since, line = self._turns, now, FIRST_LINE_SECONDS
                self.blocked_seconds = 0.0
                continue
            self.blocked_seconds = now - since
            if self.blocked_seconds >= line:
                line *= LINE_FACTOR
                self._tell()
            if self.blocked_seconds >= FIRST_LINE_SECONDS:
                self._act()

    def _task(self) -> "asyncio.Task[Any] | None":
        with contextlib.suppress(RuntimeError):
            return asyncio.current_task(self._loop)
        return None

    def _tell(self) -> None:
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - made for debuggers
        log.warning(
            "the event loop is blocked: use def or cpu=True for code that does not await",
            **self._work.about(self._task()),
            blocked_seconds=round(self.blocked_seconds, 1),
            stack="".join(traceback.format_stack(frame)).rstrip() if frame else "",
        )

    def _act(self) -> None:
        task = self._task()
        self._work.hand_back_waiting()
        if self._work.overstayed(task):
            log.error(
                "the event loop is blocked beyond the job's timeout: this worker ends",
                **self._work.about(task),
                blocked_seconds=round(self.blocked_seconds, 1),
            )
            self._work.hand_back_all()
            self._end()
