"""Jobs that Redis has lost: unfinished in the ledger, and without a record.

A Redis that comes back older than it was lacks its last seconds. What processes still know of them
they repeat at once; a job that has no record after that will never run, and ends as `record_lost`.
"""

import time

import structlog

from tandem_shared.errors import Unavailable
from tandem_shared.jobs.record import Record
from tandem_shared.jobs.states import OPEN
from tandem_shared.ledger.ledger import Ledger
from tandem_shared.queue.queue import Queue

LOST_SECONDS = 10.0  # without a record: longer than other processes take to repeat a submission
SETTLED_SECONDS = 60.0  # younger rows may be of jobs that have just been submitted or deleted
BATCH_ROWS = 250
MAX_SUSPECTS = 10_000  # remembered; beyond that, the oldest are met again as new ones

log = structlog.get_logger()


class LostJobs:
    """Finds and ends lost jobs. Every method raises Unavailable if Redis or the ledger is away."""

    def __init__(self, ledger: Ledger, queue: Queue, *, seconds: float = LOST_SECONDS) -> None:
        self._ledger, self._queue, self._seconds = ledger, queue, seconds
        self._suspects: dict[str, float] = {}  # since when (monotonic) Redis lacks the job

    async def settle(self, row: Record) -> Record:
        """The job whose row this is, after Redis has said that it has no record of it.

        Raises Unavailable while the record may still come back.
        """
        if row.done or not row.id.endswith(self._queue.shard):
            return row
        record = await self._queue.get(row.id, tenant=row.tenant)
        if record is not None:
            self._suspects.pop(row.id, None)
            return record
        if not await self._is_lost(row.id):
            raise Unavailable("Redis came back without this job: it is being looked for")
        await self._end(row.id, row.stamp)
        return await self._ledger.get(row.id, tenant=row.tenant) or row

    async def sweep(self) -> int:
        """Ends all jobs that were lost by the last sweep and still are; returns their number."""
        ended = 0
        before = (await self._queue.clock.earliest() - SETTLED_SECONDS) * 1e6
        async for rows in self._ledger.unfinished(OPEN, BATCH_ROWS):
            old = {
                id: stamp for id, stamp in rows if stamp < before and id.endswith(self._queue.shard)
            }
            existing = await self._queue.integrity.existing(list(old)) if old else set[str]()
            for id in old.keys() - existing:
                if await self._is_lost(id):
                    await self._end(id, old[id])
                    ended += 1
        return ended

    async def _is_lost(self, id: str) -> bool:
        now = time.monotonic()
        since = self._suspects.setdefault(id, now)
        if len(self._suspects) > MAX_SUSPECTS:
            del self._suspects[next(iter(self._suspects))]
        # A Redis that has never had a ledger may be the wrong one: end no job for it.
        return now - since >= self._seconds and await self._queue.events.lag() is not None

    async def _end(self, id: str, stamp: int) -> None:
        await self._ledger.fail_lost(id, stamp, now=await self._queue.clock.sync())
        self._suspects.pop(id, None)
        log.warning("Redis has lost a job: it ends as record_lost", job_id=id)
