"""The projection: what happens in the queue is written to the ledger, beside the jobs and at a pace of its own.

Workers share the work as one consumer group. Entries are taken, the records that they tell of are
read as they now are, written in one transaction, and only then acknowledged; so whatever dies in
between is done again, by whoever finds it. While SQL is away the entries wait in Redis, and the
jobs go on.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence

import structlog
from redis.exceptions import RedisError

from tandem_shared.backoff import Backoff
from tandem_shared.errors import TandemError
from tandem_shared.jobs.states import State
from tandem_shared.ledger.ledger import Ledger
from tandem_shared.ledger.rows import JobRow, row_from_values
from tandem_shared.queue.events import READ_ENTRIES, EventBatch, JobEvents, LedgerValues
from tandem_shared.settings import Settings
from tandem_worker.runtime.metrics import Spent, untold

PACE = 0.2  # seconds between two batches
BUSY_PACE = 1.0  # while jobs run: a short one then comes as one row and not as three
SHARE = 9.0  # of a busy worker's time the jobs have this many times what the projection takes
LATE, LATE_SHARE = (
    10.0,
    2.0,
)  # seconds behind from which on they have less: about what keeps up with any load
# seconds that an idle reader waits for the next entry; less than an answer of Redis may take
BLOCK = 4.0
MANY, ROOM = 500, 4 << 20  # jobs and bytes, about, in one transaction
AT_ONCE = 100  # jobs of one call to Redis, which does nothing else meanwhile
# leases after which the entries that another consumer holds are taken over; one is between two
# looks
IDLE = 6.0
LONGEST = 5.0  # seconds between two tries while something is away
SWEEP = 600.0  # seconds between two looks for rows that are old enough to go, about
GONE = 500  # of those at once

log = structlog.get_logger("ledger")


class Projection:
    """One consumer. `busy` says whether jobs of this worker run, which go first; `spent` is told of each batch."""

    def __init__(
        self,
        events: JobEvents,
        ledger: Ledger,
        settings: Settings,
        *,
        consumer: str,
        busy: Callable[[], bool],
        spent: Spent = untold,
    ) -> None:
        self._spent = spent
        self._events, self._ledger, self._settings = events, ledger, settings
        self._consumer, self._busy = consumer, busy
        self.idle, self.look = IDLE * settings.lease, settings.lease
        self._looked = 0.0
        self._more = (
            False  # the last read brought so much that the next one need not wait for more to come
        )
        self._swept = time.monotonic() - SWEEP * random.random()  # not all workers at once

    async def run(self) -> None:
        """Until it is cancelled, whatever Redis and the database do; says once that they are away, and once when not.

        What is wrong with a batch must not end the worker: the jobs do not need the ledger.
        """
        backoff, away, again = Backoff(max_seconds=LONGEST), False, True
        while True:
            try:
                if again:
                    await self._ledger.database.open()
                    await self._events.join(self._settings.ledger_backlog)
                    # What was ours when something failed comes first.
                    while (
                        held := await self._events.read_pending(self._consumer)
                    ) is not None and held.entries:
                        await self._project(held)
                        again = False
                again = not await self.step(BLOCK)
                await self.sweep()
            except Exception as error:
                known = isinstance(error, TandemError | RedisError)
                if not away:
                    log.warning(
                        "the ledger is behind",
                        error=str(error)[:300],
                        exc_info=None if known else error,
                    )
                again = away = True
                await backoff.sleep()
                continue
            if away:
                log.info("the ledger follows again")
                backoff.reset()
            away = False
            if not self._more:
                await asyncio.sleep(BUSY_PACE if self._busy() else PACE)

    async def step(self, block: float) -> bool:
        """Projects what others left behind, and what is new; False: the stream is a new one and is to be joined."""
        now = time.monotonic()
        if now - self._looked > self.look:
            self._looked = now
            while (left := await self._events.take_over(self._consumer, idle=self.idle)).entries:
                await self._project(left)
        taken = await self._events.read_new(self._consumer, block=block)
        full = taken is not None and len(taken.entries) >= READ_ENTRIES
        self._more = full or (taken is not None and len(taken.jobs) >= MANY and not self._busy())
        if taken is not None and taken.entries:
            await self._project(taken)
        return taken is not None

    async def _project(self, taken: EventBatch) -> None:
        ids, at = taken.jobs, 0
        while at < len(ids):
            begun = time.monotonic()
            facts = await self._facts(ids[at : at + MANY], taken.entries[0])
            rows = _rows(ids[at : at + len(facts)], facts)
            read = time.monotonic()
            await self._save(rows)
            saved = time.monotonic()
            finals = [(one.id, one.stamp) for one in rows if one.final]
            for start in range(0, len(finals), AT_ONCE):
                await self._events.acknowledge([], finals[start : start + AT_ONCE])
            self._spent("ledger_read", read - begun, len(rows))
            self._spent("ledger_write", saved - read, len(rows))
            self._spent("ledger_acknowledge", time.monotonic() - saved, len(rows))
            at += len(facts)
            if self._busy():
                await asyncio.sleep(
                    _share(taken.entries[0]) * min(time.monotonic() - begun, LONGEST)
                )
        await self._events.acknowledge(taken.entries, [])

    async def _facts(self, ids: Sequence[str], entry: str) -> list[LedgerValues | None]:
        """Those of these jobs, fewer than asked where they are large."""
        facts: list[LedgerValues | None] = []
        while len(facts) < len(ids):
            portion = ids[len(facts) : len(facts) + AT_ONCE]
            facts += await self._events.ledger_values(
                portion, max_bytes=ROOM * AT_ONCE // MANY, entry=entry
            )
            if len(facts) % AT_ONCE:
                break
        return facts

    async def _save(self, rows: Sequence[JobRow]) -> None:
        """Writes them; if the database refuses one for what it is, that one alone is left out, and said."""
        if not rows:
            return
        try:
            await self._ledger.save(rows)
        except TandemError:
            raise
        except Exception as error:
            if len(rows) == 1:
                log.exception(
                    "a job cannot be written to the ledger", job_id=rows[0].id, exc_info=error
                )
                return
            for one in rows:
                await self._save([one])

    async def sweep(self) -> None:
        """Removes a portion of the rows that have been kept long enough; the next one soon, if there is more."""
        if time.monotonic() - self._swept < SWEEP:
            return
        one = self._settings
        keep = {
            State.SUCCEEDED: one.ledger_keep,
            State.CANCELLED: one.ledger_keep,
            State.FAILED: one.ledger_keep_failed,
        }
        removed = await self._ledger.expire(keep, limit=GONE)
        if removed:
            log.info("old jobs are forgotten", removed=removed)
        if removed < GONE:
            self._swept = time.monotonic() - SWEEP * random.uniform(0, 0.5)


def _rows(ids: Sequence[str], facts: Sequence[LedgerValues | None]) -> list[JobRow]:
    return [
        row_from_values(id, values)
        for id, values in zip(ids, facts, strict=True)
        if values is not None
    ]


def _share(entry: str) -> float:
    """How many times as long as the projection the jobs go on alone; `entry`, the oldest one, says when it was made."""
    behind = time.time() - int(entry.partition("-")[0]) / 1000  # of two clocks: a hint
    return SHARE if behind < LATE else LATE_SHARE
