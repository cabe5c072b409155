"""A job by its id: as Redis has it, or, once its record there has expired, as the ledger does."""

import time
from collections.abc import Callable

from tandem_api.drain import Drain
from tandem_api.http.retry import LONGEST, steadily
from tandem_api.state import Served
from tandem_shared.errors import NotFound
from tandem_shared.jobs.ids import ID_CHARS, id_time
from tandem_shared.jobs.record import Record
from tandem_shared.queue.queue import Queue


async def known(state: Served, id: str) -> Record:
    """The job. Raises NotFound, and Unavailable where it cannot be said."""
    record = await steadily(lambda: state["queue"].get(id, tenant=state["tenant"]))
    if record is None:
        record = await remembered(state, id)
    return record


async def remembered(state: Served, id: str) -> Record:
    """The same for one of which Redis knows nothing."""
    record = None
    if (
        len(id) == ID_CHARS and id_time(id) is not None
    ):  # else nobody ever had it, whatever the database would say
        record = await state["ledger"].get(id, tenant=state["tenant"])
    if record is None:
        raise NotFound("job", id[:64])
    return record


async def until(
    enough: Callable[[Record], bool],
    id: str,
    *,
    tenant: str,
    queue: Queue,
    drain: Drain,
    seconds: float,
) -> Record | None:
    """The job as soon as it is `enough`, else as it is after `seconds` or when the service ends; None if it is gone."""
    end = time.monotonic() + min(seconds, LONGEST)
    async with queue.subscribe(id) as change:
        with drain.telling(change.set):
            while True:
                record = await steadily(lambda: queue.get(id, tenant=tenant))
                left = end - time.monotonic()
                if record is None or enough(record) or left <= 0 or drain.begun:
                    return record
                await change.wait(left)
