"""How `def` code in a thread or process reaches the event loop."""

from typing import Any, Literal, Protocol

Report = Literal["progress", "output", "log"]


class Channel(Protocol):
    """From plain code to the event loop that serves its job. Once the job is over, all raise CancelledError."""

    def send(self, report: Report, body: bytes) -> None:
        """Hand one report over; waits while many are under way."""

    def call(self, operation: str, argument: Any, body: bytes = b"") -> tuple[Any, bytes]:
        """Have `tandem_worker.executors.portal.Desk.answer` do something on the loop and wait for it. Raises what it raises."""

    def is_over(self) -> bool:
        """Whether the attempt has ended: by cancellation, timeout, a lost lease or shutdown."""
