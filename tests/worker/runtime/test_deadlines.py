"""One timer for many deadlines: each item is called once, on time, unless it was dropped."""

import pytest

from tandem_worker.runtime.deadlines import Deadlines
from tests.worker.clocks import Clock


class Run:
    """Records when it was called. With `again`, sets another deadline that many seconds later."""

    def __init__(self, clock: Clock, deadlines: Deadlines, again: float | None = None) -> None:
        self.clock, self.deadlines, self.again = clock, deadlines, again
        self.calls: list[float] = []

    def overdue(self) -> None:
        self.calls.append(self.clock.now - 100)
        if self.again is not None:
            self.deadlines.add(self, self.again)
            self.again = None


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def deadlines(clock: Clock) -> Deadlines:
    return Deadlines(clock)  # type: ignore[arg-type] # all it uses of a loop


def test_each_item_is_called_once_and_on_time(clock: Clock, deadlines: Deadlines) -> None:
    runs = [Run(clock, deadlines) for _ in range(4)]
    for run, seconds in zip(runs, (30, 10, 20, 10), strict=True):
        deadlines.add(run, seconds)
    clock.turn(100)
    assert [run.calls for run in runs] == [[30], [10], [20], [10]]
    assert not clock.waiting


def test_a_dropped_item_is_not_called(clock: Clock, deadlines: Deadlines) -> None:
    dropped, kept = Run(clock, deadlines), Run(clock, deadlines)
    deadlines.add(dropped, 10)
    deadlines.add(kept, 20)
    deadlines.drop(dropped)
    deadlines.drop(dropped)  # a second time does nothing
    clock.turn(100)
    assert (dropped.calls, kept.calls) == ([], [20])


def test_an_item_added_later_may_be_due_earlier(clock: Clock, deadlines: Deadlines) -> None:
    late, early = Run(clock, deadlines), Run(clock, deadlines)
    deadlines.add(late, 60)
    clock.turn(5)
    deadlines.add(early, 1)
    assert len(clock.waiting) == 1
    clock.turn(100)
    assert (late.calls, early.calls) == ([60], [6])


def test_an_overdue_item_may_set_another_deadline(clock: Clock, deadlines: Deadlines) -> None:
    ignores, other = Run(clock, deadlines, again=5), Run(clock, deadlines)
    deadlines.add(ignores, 10)
    deadlines.add(other, 12)
    clock.turn(100)
    assert (ignores.calls, other.calls) == ([10, 15], [12])


def test_a_timer_may_fire_slightly_early(clock: Clock, deadlines: Deadlines) -> None:
    # Some event loops round clocks and timers to milliseconds.
    run = Run(clock, deadlines)
    deadlines.add(run, 10)
    clock.now += 9.9995
    clock.waiting.pop().ring()
    assert run.calls == [pytest.approx(9.9995)]


def test_many_short_items_share_a_few_timers(clock: Clock, deadlines: Deadlines) -> None:
    for step in range(10_000):
        run = Run(clock, deadlines)
        deadlines.add(run, 30)
        clock.turn(step / 100)
        deadlines.drop(run)
    assert clock.set < 10
