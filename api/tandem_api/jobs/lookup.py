"""A job by its id: from Redis or, once its record there has expired, from the ledger."""

import time
from collections.abc import Callable

from tandem_api.http.parameters import MAX_WAIT_SECONDS
from tandem_api.redis_retry import retry_briefly
from tandem_api.state import RequestState
from tandem_shared.errors import NotFound, Unavailable
from tandem_shared.jobs.ids import is_id
from tandem_shared.jobs.record import Record, job_json


def shown(state: RequestState, record: Record, payload: bytes | None = None) -> bytes:
    """The job in JSON, with links that hold behind this service's proxy."""
    return job_json(record, payload=payload, root=state["settings"].root_path)


async def find_job(state: RequestState, id: str) -> Record:
    """The job. Raises NotFound, and Unavailable if Redis or the ledger cannot be asked."""
    record = await retry_briefly(state["queue"].get, id, tenant=state["tenant"])
    return record or await find_in_ledger(state, id)


async def find_in_ledger(state: RequestState, id: str) -> Record:
    """A job that Redis does not know; one that it lost ends. Raises NotFound and Unavailable."""
    record = None
    # An id that was never assigned is unknown even while the database is away: do not ask.
    if is_id(id):
        record = await state["ledger"].get(id, tenant=state["tenant"])
    if record is None:
        raise unknown_job(state, id)
    return await state["lost"].settle(record)


def unknown_job(state: RequestState, id: str) -> NotFound | Unavailable:
    """What is said of a job that is nowhere: while it may be submitted again, that is not sure."""
    if is_id(id) and state["queue"].repeats.quiet > 0:
        return Unavailable("Redis has just returned, and recent jobs are submitted to it again")
    return NotFound("job", id[:64])


async def wait_until(
    condition: Callable[[Record], bool], state: RequestState, id: str, seconds: float
) -> Record | None:
    """The job once it meets the condition, or as it is after `seconds` or when the drain begins.

    None if Redis no longer has it. Raises Unavailable.
    """
    queue, drain = state["queue"], state["drain"]
    end = time.monotonic() + min(seconds, MAX_WAIT_SECONDS)
    async with queue.subscribe(id) as change:
        with drain.notifying(change.set):
            while True:
                record = await retry_briefly(queue.get, id, tenant=state["tenant"])
                left = end - time.monotonic()
                if record is None or condition(record) or left <= 0 or drain.begun:
                    return record
                await change.wait(left)
