"""How much memory requests that are not complete may take, over all connections of a process."""


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
