"""Waiting for jobs and for Redis: never longer than asked, never in a busy loop, and not beyond the service's end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Drain:
    """The end of this process's service: announced to who probes it, then begun, and told to all who wait."""

    def __init__(self) -> None:
        self.announced = False
        self.begun = False
        self._told: set[Callable[[], None]] = set()

    def announce(self) -> None:
        """From now on the process is unready, and asks clients to come back over another connection."""
        self.announced = True

    def begin(self) -> None:
        """Who waits for news gets what there is, and goes."""
        self.announced = self.begun = True
        for tell in list(self._told):
            tell()

    @contextmanager
    def telling(self, tell: Callable[[], None]) -> Iterator[None]:
        """Has `tell` called when the drain begins."""
        self._told.add(tell)
        try:
            yield
        finally:
            self._told.discard(tell)
