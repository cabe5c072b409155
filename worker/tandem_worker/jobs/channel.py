"""How `def` code in a thread or process reaches the event loop."""

from typing import Any, Literal, Protocol

Report = Literal["progress", "output", "log"]


class Channel(Protocol):
    """From `def` code to the event loop. Once the job is over, its calls raise CancelledError."""

    def send(self, report: Report, body: bytes) -> None:
        """Send one report; waits while too many are undelivered."""

    def call(self, operation: str, argument: Any, body: bytes = b"") -> Any:
        """What `executors.portal.Portal` returns (b"" may stand for None) or raises."""

    def is_over(self) -> bool:
        """Whether the attempt has ended: by cancellation, timeout, a lost lease or shutdown."""
