"""Zombies: code that still runs although its job has ended, since it ignored its cancellation."""

from collections.abc import Callable
from typing import Any

import structlog

log = structlog.get_logger("worker")


class Zombies:
    """Counts such code, on the event loop; `len()` may be called from any thread.

    Code is `left` when its job ends without it, and `counted` as a zombie (with a line in the log)
    once it has ignored that for the cancel grace. `on_limit` is called when `limit` are counted,
    `on_room` when fewer than `limit` are left again.
    """

    def __init__(
        self,
        limit: int,
        *,
        on_limit: Callable[[], None] = lambda: None,
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._limit, self._on_limit, self._on_room = limit, on_limit, on_room
        self._left: dict[object, dict[str, Any]] = {}  # with the facts for the log
        self._counted: set[object] = set()

    def __len__(self) -> int:
        return len(self._counted)

    def all(self) -> list[object]:
        """The code that is left, for any thread."""
        return list(self._left)

    @property
    def full(self) -> bool:
        """Whether more code is left than the worker may take on further jobs with."""
        return len(self._left) >= self._limit

    def left(self, code: object, **facts: Any) -> None:
        """The code's job has ended; the facts (task, job_id, runs) are for the log."""
        self._left[code] = facts

    def count(self, code: object) -> None:
        """Count the code unless it has stopped meanwhile."""
        facts = self._left.get(code)
        if facts is None:
            return
        self._counted.add(code)
        log.warning("the job has ended, but its code still runs", **facts, zombies=len(self))
        if len(self) >= self._limit:
            self._on_limit()

    def stopped(self, code: object) -> None:
        """The code has stopped; does nothing if it was not left."""
        was_full = self.full
        facts = self._left.pop(code, None)
        if code in self._counted:
            self._counted.discard(code)
            log.info("the code of an ended job has stopped", **(facts or {}), zombies=len(self))
        if was_full and not self.full:
            self._on_room()
