"""When runs are to end: one timer for all of a worker's, since one each costs more than a short job does."""

import math
from collections.abc import Callable
from typing import Protocol

TICK = 0.001  # seconds that the event loop's clock and its timers are apart at most


class Timer(Protocol):
    """What may be about to ring."""

    def cancel(self) -> None:
        """It does not ring."""


class Clock(Protocol):
    """The part of an event loop that keeps the time."""

    def time(self) -> float:
        """Seconds."""

    def call_at(self, when: float, callback: Callable[[], None], /) -> Timer:
        """Calls it then."""


class Timed(Protocol):
    """What has a deadline; `tandem_worker.runtime.run.Run` is one."""

    def overdue(self) -> None:
        """Its time has come. It may be given another deadline meanwhile."""


class Deadlines:
    """Calls `overdue` of each in its time, unless it is dropped before.

    Most are: so the timer is not touched when one is added or dropped, but for one that is due
    before all others. When it rings it may find nothing due, and then looks for the next one among
    those that are left.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: dict[Timed, float] = {}  # on the clock
        self._timer: Timer | None = None
        self._next = math.inf  # when it rings

    def add(self, one: Timed, seconds: float) -> None:
        """Calls it in so many seconds; an earlier deadline of it is forgotten."""
        due = self._due[one] = self._clock.time() + seconds
        if due < self._next:
            self._set(due)

    def drop(self, one: Timed) -> None:
        """Does not call it any more."""
        self._due.pop(one, None)

    def _set(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = due
        self._timer = self._clock.call_at(due, self._ring)

    def _ring(self) -> None:
        self._timer, self._next = None, math.inf
        now = self._clock.time() + TICK
        for one in [one for one, due in self._due.items() if due <= now]:
            del self._due[one]
            one.overdue()
        if self._due and (due := min(self._due.values())) < self._next:
            self._set(due)
