"""A job by its id: as Redis has it, or, once its record there has expired, as the ledger does."""

from tandem_api.state import Served
from tandem_api.waiting import steadily
from tandem_shared.errors import NotFound
from tandem_shared.jobs.ids import ID_LENGTH, id_time
from tandem_shared.jobs.record import Record


async def known(state: Served, id: str) -> Record:
    """The job. Raises NotFound, and Unavailable where it cannot be said."""
    record = await steadily(lambda: state["queue"].get(id, tenant=state["tenant"]))
    if record is None:
        record = await remembered(state, id)
    return record


async def remembered(state: Served, id: str) -> Record:
    """The same for one of which Redis knows nothing."""
    record = None
    if len(id) == ID_LENGTH and id_time(id) is not None:  # else nobody ever had it, whatever the database would say
        record = await state["ledger"].get(id, tenant=state["tenant"])
    if record is None:
        raise NotFound("job", id[:64])
    return record
