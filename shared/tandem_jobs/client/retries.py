"""How long a call of the client keeps retrying, and how long it sleeps between two tries."""

import time
from collections.abc import Callable

from tandem_jobs.client.errors import Problem
from tandem_jobs.client.transport import ConnectionLost, Transport
from tandem_shared.backoff import Backoff
from tandem_shared.errors import Unavailable

MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.1, 2.0


class Retries:
    """The tries of one call: `patience` seconds without a success, and none after `deadline`.

    `deadline` is on the monotonic clock. `on_retry` gets the reason before each retry.
    """

    def __init__(
        self,
        transport: Transport,
        patience: float,
        on_retry: Callable[[str], None] | None,
        deadline: float | None = None,
    ) -> None:
        self._transport, self._patience = transport, patience
        self._on_retry, self._deadline = on_retry, deadline
        self._backoff = Backoff(first_seconds=MIN_PAUSE_SECONDS, max_seconds=MAX_PAUSE_SECONDS)
        self._failing_since: float | None = None

    def reset(self) -> None:
        """Start over, after a sign of life."""
        self._failing_since = None
        self._backoff.reset()

    async def sleep(self, fault: ConnectionLost | Problem, min_seconds: float = 0.0) -> None:
        """Sleep until the next try. Raises Unavailable, or TimeoutError at the deadline."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        pause = max(min_seconds, self._backoff.next())
        if self._deadline is not None and now + pause > self._deadline:
            raise TimeoutError(f"{self._transport.url} did not answer in time: {fault}")
        if now + pause > self._failing_since + self._patience:
            raise Unavailable(f"{self._transport.url} does not answer: {fault}") from fault
        if self._on_retry is not None:
            self._on_retry(str(fault))
        await self._transport.sleep(pause)
