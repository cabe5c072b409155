"""Repeats a call to Redis while it is briefly away, within the time a client is ready to wait."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tandem_shared.errors import Full, Unavailable

T = TypeVar("T")


LONGEST = 30.0  # seconds that a client may have us wait


PAUSES = (0.05, 0.25)  # seconds before Redis is asked again


AT_ONCE = 1.0  # seconds; a failure that took longer than this is not worth another try


async def steadily(call: Callable[[], Awaitable[T]]) -> T:
    """The answer, also over a connection that Redis closed meanwhile: what fails at once is tried again twice.

    For calls that may be repeated, as all of the queue's.
    """
    for pause in PAUSES:
        begun = time.monotonic()
        try:
            return await call()
        except Full:
            raise
        except Unavailable:
            if time.monotonic() - begun > AT_ONCE:
                raise
        await asyncio.sleep(pause)
    return await call()
