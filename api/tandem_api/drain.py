"""How this process ends: announced to probes first, then begun, which ends streams and waits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Drain:
    """Once `announced`, probes see the process as unready; once `begun`, streams and waits end."""

    def __init__(self) -> None:
        self.announced = False
        self.begun = False
        self._callbacks: set[Callable[[], None]] = set()

    def announce(self) -> None:
        """Reports unready from now on, and asks clients to use another connection."""
        self.announced = True

    def begin(self) -> None:
        """Calls all callbacks."""
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
