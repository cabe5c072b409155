"""Retries a call to Redis that failed immediately, while the client waits."""

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
    """The answer of `call`, tried up to three times while it fails at once with Unavailable.

    Redis may have closed an idle connection. The queue's calls are safe to repeat.
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
