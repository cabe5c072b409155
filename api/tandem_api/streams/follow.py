"""Follows a job's stream live, through outages of Redis."""

import time
from collections.abc import Awaitable, Callable

from tandem_api.jobs.lookup import find_job
from tandem_api.state import RequestState
from tandem_shared.errors import NotFound, Unavailable
from tandem_shared.jobs.record import Record
from tandem_shared.queue.pubsub import ChangeSignal

MAX_OUTAGE_SECONDS = 60.0  # of Redis, after which the reader is disconnected
RETRY_SECONDS = 1.0  # between two tries until then


async def follow(
    state: RequestState,
    first: Record,
    change: ChangeSignal,
    *,
    send: Callable[[Record], Awaitable[None]],
    idle: Callable[[ChangeSignal, float | None], Awaitable[None]],
) -> bool:
    """Sends a job's stream up to its end. False if the job, Redis or this process ends before it.

    `send` sends what is new in a record; `idle` waits for a change, up to a number of seconds.
    """
    record: Record | None = first
    failing_since = 0.0
    while not state["drain"].begun:
        try:
            if record is None:
                record = await find_job(state, first.id)
            await send(await state["queue"].waiting.explain(record))
            if record.done:
                return True
            failing_since = 0.0
            await idle(change, None)
        except Unavailable:
            now = time.monotonic()
            failing_since = failing_since or now
            if now - failing_since > MAX_OUTAGE_SECONDS:
                return False
            await idle(change, RETRY_SECONDS)
        except NotFound:
            return False
        record = None
    return False
