"""Waiting for the first of several awaitables."""

import asyncio
from typing import Any


async def wait_first(*awaitables: Any, timeout: float | None = None) -> None:
    """Return when the first is done, or after `timeout` seconds. Cancels the coroutines."""
    futures = [asyncio.ensure_future(one) for one in awaitables]
    try:
        await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for given, future in zip(awaitables, futures, strict=True):
            if given is not future:
                future.cancel()
