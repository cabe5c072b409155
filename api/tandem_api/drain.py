"""A shutdown in two steps: first probes see it, then streams and long-polls end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Drain:
    """Once `announced`, probes see the process as unready; once `begun`, streams end."""

    def __init__(self) -> None:
        self.announced = False
        self.begun = False
        self._callbacks: set[Callable[[], None]] = set()

    def announce(self) -> None:
        """Reports unready from now on, and asks clients to use another connection."""
        self.announced = True

    def begin(self) -> None:
        """Ends streams and long-polls, by their callbacks."""
        self.announced = self.begun = True
        for callback in list(self._callbacks):
            callback()

    @contextmanager
    def notifying(self, callback: Callable[[], None]) -> Iterator[None]:
        """Within the block, `callback` is called when the drain begins."""
        self._callbacks.add(callback)
        try:
            yield
        finally:
            self._callbacks.discard(callback)
