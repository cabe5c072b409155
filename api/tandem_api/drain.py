"""The end of this process's service: first announced to probes, then begun: all waits end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Drain:
    """`announced`: probes see the process as unready. `begun`: streams and long polls end."""

    def __init__(self) -> None:
        self.announced = False
        self.begun = False
        self._callbacks: set[Callable[[], None]] = set()

    def announce(self) -> None:
        """Report unready from now on, and ask clients to come back over another connection."""
        self.announced = True

    def begin(self) -> None:
        """Call everything that waits for the drain."""
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
