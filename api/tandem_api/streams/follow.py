"""Follows a job's stream, live, across failures of Redis."""

import time
from collections.abc import Awaitable, Callable

from tandem_api.state import Served
from tandem_shared.errors import Unavailable
from tandem_shared.jobs.record import Record
from tandem_shared.queue.pubsub import ChangeSignal

AWAY = 60.0  # seconds without Redis after which the reader is sent away, to come again


AGAIN = 1.0  # seconds between two tries meanwhile


async def follow(
    state: Served,
    first: Record,
    change: ChangeSignal,
    *,
    tell: Callable[[Record], Awaitable[None]],
    idle: Callable[[ChangeSignal, float | None], Awaitable[None]],
) -> bool:
    """Has all told that happens to a job, up to its end; False if the job, Redis or the service went before it.

    `tell` tells what is new as of a record; `idle` waits for a change, or for so many seconds.
    """
    record: Record | None = first
    away = 0.0  # since when Redis has not answered
    while not state["drain"].begun:
        try:
            if record is None:
                record = await state["queue"].get(first.id, tenant=state["tenant"])
                if record is None:
                    return False
            await tell(record)
            if record.done:
                return True
            away = 0.0
            await idle(change, None)
        except Unavailable:
            now = time.monotonic()
            away = away or now
            if now - away > AWAY:
                return False
            await idle(change, AGAIN)
        record = None
    return False
