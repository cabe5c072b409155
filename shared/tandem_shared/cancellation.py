"""Cancelling a task and waiting for its end."""

import asyncio
import contextlib
from typing import Any

ATTEMPTS = 50
ATTEMPT_SECONDS = 0.1


async def cancel_and_wait(task: "asyncio.Future[Any]") -> None:
    """Cancel the task until it ends, for up to 5 s. Raises the error that it ended with, if any.

    One `cancel()` is not enough: in Python 3.11 `asyncio.wait_for`, which libraries call, may
    swallow it.
    """
    for _ in range(ATTEMPTS):
        task.cancel()
        await asyncio.wait({task}, timeout=ATTEMPT_SECONDS)
        if task.done():
            with contextlib.suppress(asyncio.CancelledError):
                task.result()
            return
