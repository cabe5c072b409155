"""What Redis accepted in the last seconds: it lacks some of that if it comes back older."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

SAFE_SECONDS = 3.0  # appendfsync everysec loses up to 2 s


class Recent(Generic[T]):
    """Items in the order in which Redis accepted them, until they are safe.

    Keeps at most about `max_bytes`, as `add` counts them: then the oldest are dropped. While
    `frozen`, only that drops any.
    """

    def __init__(self, max_bytes: int) -> None:
        self.frozen = False
        self._max_bytes, self._bytes = max_bytes, 0
        self._batches: deque[tuple[float, int, Sequence[T]]] = deque()  # time, bytes, items

    def add(self, items: Sequence[T], size: int) -> None:
        """Keeps what Redis has just accepted."""
        self._batches.append((time.monotonic(), size, items))
        self._bytes += size
        self.confirm()

    def confirm(self) -> None:
        """Drops what is safe, since Redis has just answered and has not restarted before."""
        safe = time.monotonic() - SAFE_SECONDS
        batches = self._batches
        while batches and (
            self._bytes > self._max_bytes or (not self.frozen and batches[0][0] < safe)
        ):
            self._bytes -= batches.popleft()[1]

    def __iter__(self) -> Iterator[T]:
        for _, _, items in list(self._batches):
            yield from items
