"""Waiting: for the first of several, for the end of one, for a store that is away."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from tandem_shared.errors import Unavailable

T = TypeVar("T")


async def first(*awaitables: Any, timeout: float | None = None) -> None:
    """Returns when the first is done or after `timeout` seconds; the others are cancelled unless they are futures."""
    own = [asyncio.ensure_future(one) for one in awaitables]
    try:
        await asyncio.wait(own, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for given, future in zip(awaitables, own, strict=True):
            if given is not future:
                future.cancel()


async def ended(task: "asyncio.Future[Any]") -> None:
    """Cancels it until it is done, for 5 s at most."""
    # More than once: in Python 3.11 `asyncio.wait_for`, which libraries wait with, may swallow a
    # cancellation.
    for _ in range(50):
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
        if task.done():
            return


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """The answer, whenever it comes: while what is asked is away, it is asked again. Who calls has a timeout."""
    pause = 0.05
    while True:
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, 2.0)
