"""Repeats a call to Redis that failed at once, within the time that a client is ready to wait."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from tandem_shared.errors import Full, Unavailable

P = ParamSpec("P")
T = TypeVar("T")

PAUSES_SECONDS = (0.05, 0.25)  # before the second and the third try
FAST_FAILURE_SECONDS = 1.0  # a failure that took longer is not worth another try


async def retry_briefly(call: Callable[P, Awaitable[T]], *args: P.args, **options: P.kwargs) -> T:
    """The answer of `call`, which is tried up to three times while it raises Unavailable at once.

    Redis may have closed an idle connection. `call` must be safe to repeat, as the queue's are.
    """
    for pause in PAUSES_SECONDS:
        began = time.monotonic()
        try:
            return await call(*args, **options)
        except Full:
            raise
        except Unavailable:
            if time.monotonic() - began > FAST_FAILURE_SECONDS:
                raise
        await asyncio.sleep(pause)
    return await call(*args, **options)
