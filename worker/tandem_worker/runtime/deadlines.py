"""The timeouts of all runs on one timer: a timer per run would cost more than a short job."""

import asyncio
import math
from typing import Protocol

TIMER_ERROR_SECONDS = 0.001  # by which the loop's timers may fire early on its own clock


class Timed(Protocol):
    """What has a deadline, such as `tandem_worker.runtime.run.Run`."""

    def overdue(self) -> None:
        """The deadline has passed. May set another one."""


class Deadlines:
    """Calls `overdue` of each item at its deadline, unless the item is dropped before.

    Most items are dropped, so the timer is reset only for an item that is due before all others.
    When the timer finds nothing due, it is set to the earliest deadline left.
    """

    def __init__(self, clock: asyncio.AbstractEventLoop) -> None:
        self._clock = clock
        self._due: dict[Timed, float] = {}  # on the clock
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf  # when the timer fires

    def add(self, item: Timed, seconds: float) -> None:
        """Set the item's deadline to `seconds` from now; it replaces an earlier one."""
        due = self._due[item] = self._clock.time() + seconds
        if due < self._next:
            self._set_timer(due)

    def drop(self, item: Timed) -> None:
        """Remove the item's deadline, if it has one."""
        self._due.pop(item, None)

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = due
        self._timer = self._clock.call_at(due, self._fire)

    def _fire(self) -> None:
        self._timer, self._next = None, math.inf
        now = self._clock.time() + TIMER_ERROR_SECONDS
        for item in [item for item, due in self._due.items() if due <= now]:
            del self._due[item]
            item.overdue()
        due = min(self._due.values(), default=math.inf)
        if due < self._next:
            self._set_timer(due)
