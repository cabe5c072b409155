"""How much memory requests under way may take, over all connections of a process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tandem_shared.errors import Unavailable

# Together with 100 MiB of the process itself, and the buffers of a thousand sockets, these stay
# below 400 MiB.
BODIES_BYTES = 32 << 20
ARRAYS_BYTES = 96 << 20
DOWNLOADS_BYTES = 32 << 20
SPOOLS = 4  # times `TANDEM_BULK_SPOOL`, on disk


class MemoryBudget:
    """Bytes that may be in use at once. Never negative, and never above `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    def take(self, size: int) -> bool:
        """Uses `size` more bytes; False, and nothing changes, if there are not that many left."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give_back(self, size: int) -> None:
        """The bytes are free again."""
        self.used -= size

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """What one request takes; free again after the block."""
        share = Share(self)
        try:
            yield share
        finally:
            self.give_back(share.used)


class Share:
    """What one request takes of a budget."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget, self.used = budget, 0

    def resize(self, size: int) -> None:
        """Takes `size` bytes in all. Raises Unavailable if there are not that many left."""
        if size > self.used and not self._budget.take(size - self.used):
            raise Unavailable("too many requests are being received at once; try again")
        if size < self.used:
            self._budget.give_back(self.used - size)
        self.used = size


class RequestMemory(NamedTuple):
    """The budgets of a process, by what they are for."""

    bodies: MemoryBudget  # of single jobs, and lines, which are not complete
    arrays: MemoryBudget  # of bulk requests, until they are answered
    downloads: MemoryBudget  # which read large pieces while there is room
    spools: MemoryBudget  # of bulk answers that wait, on disk


def request_memory(bulk_spool: int) -> RequestMemory:
    """The budgets of a process."""
    return RequestMemory(
        MemoryBudget(BODIES_BYTES),
        MemoryBudget(ARRAYS_BYTES),
        MemoryBudget(DOWNLOADS_BYTES),
        MemoryBudget(SPOOLS * bulk_spool),
    )
