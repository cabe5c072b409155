"""Waiting for the first of several."""

import asyncio
from typing import Any


async def first(*awaitables: Any, timeout: float | None = None) -> None:
    """Returns when the first is done or after `timeout` seconds; the others are cancelled unless they are futures."""
    own = [asyncio.ensure_future(one) for one in awaitables]
    try:
        await asyncio.wait(own, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for given, future in zip(awaitables, own, strict=True):
            if given is not future:
                future.cancel()
