"""How long a call keeps trying, and how long it sleeps between two tries."""

import random
import time
from collections.abc import Callable

from tandem_jobs.client.errors import Problem
from tandem_jobs.client.transport import Lost, Wire
from tandem_shared.errors import Unavailable

SHORTEST, LONGEST = 0.1, 2.0  # seconds between two tries


class Patience:
    """How long one call goes on without being heard; `deadline` is on the monotonic clock."""

    def __init__(
        self,
        wire: Wire,
        seconds: float,
        told: Callable[[str], None] | None,
        deadline: float | None = None,
    ) -> None:
        self._wire, self._seconds, self._told, self._deadline = wire, seconds, told, deadline
        self._since: float | None = None
        self._tries = 0

    def heard(self) -> None:
        """Begin again."""
        self._since, self._tries = None, 0

    async def again(self, fault: Lost | Problem, floor: float = 0.0) -> None:
        """Return when it is time for another try. Raises Unavailable, or TimeoutError at the deadline."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        pause = max(floor, min(LONGEST, SHORTEST * 2.0 ** min(self._tries, 10)) * random.random())
        self._tries += 1
        if self._deadline is not None and now + pause > self._deadline:
            raise TimeoutError(f"{self._wire.url} did not answer in time: {fault}")
        if now + pause > self._since + self._seconds:
            raise Unavailable(f"{self._wire.url} does not answer: {fault}") from fault
        if self._told is not None:
            self._told(str(fault))
        await self._wire.pause(pause)
