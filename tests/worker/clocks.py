"""An event loop's clock that a test turns by hand, with its timers."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(eq=False)
class Timer:
    when: float
    ring: Callable[[], None]
    clock: "Clock"

    def cancel(self) -> None:
        self.clock.waiting.remove(self)


class Clock:
    """The part of an event loop that keeps the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waiting: list[Timer] = []
        self.set = 0  # timers so far

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(when, callback, self)
        self.waiting.append(timer)
        self.set += 1
        return timer

    def turn(self, to: float) -> None:
        """Move to that many seconds after the start, timer by timer."""
        while due := [timer for timer in self.waiting if timer.when <= 100 + to]:
            timer = min(due, key=lambda one: one.when)
            self.waiting.remove(timer)
            self.now = timer.when
            timer.ring()
        self.now = 100 + to
