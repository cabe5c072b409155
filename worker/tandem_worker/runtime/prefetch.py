"""Jobs that are claimed before there is a slot for them, so that a slot that is freed has its next job at once.

Else a worker with short jobs does nothing in each of its claims, and Redis nothing in between.
There are only as many as will start within a moment, going by how long attempts took lately: none
where they take seconds. Should all slots turn out to be taken by longer ones, those that wait are
handed back, uncharged.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Claimed, Finish
from tandem_worker.runtime.deadlines import TICK, Clock
from tandem_worker.runtime.run import Cause

MOMENT = 0.02  # seconds in which they should start
PATIENCE = 0.25  # seconds after which they are handed back
SHARE = 3  # times the slots, at most
MOST = 400
ROOM = 1 << 20  # bytes of payload after which no more are claimed
RECENT = 1 / 32  # the weight of the last attempt in what attempts take


class Waiting(NamedTuple):
    """One of them, and when it was claimed, on the clock."""

    claimed: Claimed
    since: float


class Ahead:
    """First come, first served. `held` is what the heart beats for, `put` has outcomes written."""

    def __init__(
        self,
        slots: int,
        clock: Clock,
        held: dict[str, tuple[str, float]],
        put: Callable[[Finish], None],
    ) -> None:
        self._slots, self._clock, self._held, self._put = slots, clock, held, put
        self._line: dict[str, Waiting] = {}  # by id
        self._bytes = 0
        self._slow = 2 * slots * MOMENT  # seconds of an attempt with which none is claimed ahead
        self._span = self._slow  # seconds that attempts took lately
        self._watched = False

    def __len__(self) -> int:
        return len(self._line)

    def __contains__(self, id: str) -> bool:
        return id in self._line

    @property
    def room(self) -> int:
        """How many more may be claimed ahead now."""
        if self._bytes >= ROOM:
            return 0
        most = min(MOST, SHARE * self._slots)
        return max(
            0, min(most, int(self._slots * MOMENT / max(self._span, 1e-6))) - len(self._line)
        )

    def ended(self, seconds: float) -> None:
        """An attempt took so long."""
        self._span += (min(seconds, self._slow) - self._span) * RECENT

    def add(self, claimed: Claimed, lease: float) -> None:
        """Keeps it until a slot is free, and meanwhile its lease of so many seconds."""
        self._remove(claimed.id)  # its lease ended unseen, and the job came back here
        self._line[claimed.id] = Waiting(claimed, self._clock.time())
        self._bytes += len(claimed.payload)
        self._held[claimed.id] = (claimed.token, time.monotonic() + PATIENCE + lease)
        if not self._watched:
            self._watch()

    def next(self) -> Waiting | None:
        """Who is to start now."""
        for id in self._line:
            return self._remove(id)
        return None

    def stop(self, id: str, cause: Cause) -> None:
        """It does not start, for that cause, if it waits here."""
        waiting = self._remove(id)
        if waiting is not None and cause == "cancel":
            self._put(Finish(id, waiting.claimed.token, State.CANCELLED, "cancelled"))
        elif waiting is not None:
            self._held.pop(id, None)

    def hand_back(self) -> None:
        """All of them, uncharged, for other workers."""
        while (waiting := self.next()) is not None:
            self._put(Finish(waiting.claimed.id, waiting.claimed.token, State.QUEUED, "released"))

    def _remove(self, id: str) -> Waiting | None:
        waiting = self._line.pop(id, None)
        if waiting is not None:
            self._bytes -= len(waiting.claimed.payload)
        return waiting

    def _watch(self) -> None:
        self._watched = True
        self._clock.call_at(self._clock.time() + PATIENCE, self._look)

    def _look(self) -> None:
        self._watched = False
        first = next(iter(self._line.values()), None)
        if first is not None and first.since + PATIENCE <= self._clock.time() + TICK:
            self.hand_back()
            self._span = self._slow
        if self._line:
            self._watch()
