"""The projection: copies what happens in the queue to the ledger, while jobs run.

Workers share the work as one consumer group. For each batch of events, the current records of the
jobs in it are read and written in one transaction; only then are the events acknowledged, so after
a crash in between, another worker repeats the batch. While SQL is unavailable, the
events wait in Redis and jobs continue.
"""

import asyncio
import random
import time
from collections.abc import Sequence, Sized

import structlog
from redis.exceptions import RedisError

from tandem_shared.backoff import Backoff
from tandem_shared.errors import TandemError
from tandem_shared.jobs.states import State
from tandem_shared.ledger.ledger import Ledger
from tandem_shared.ledger.rows import JobRow, row_from_values
from tandem_shared.queue.clock import RedisClock
from tandem_shared.queue.events import READ_ENTRIES, EventBatch, JobEvents, LedgerValues
from tandem_shared.settings import Settings
from tandem_worker.runtime.endings import job_ended
from tandem_worker.runtime.metrics import WorkerMetrics

PAUSE_SECONDS = 0.2  # between two batches
BUSY_PAUSE_SECONDS = 1.0  # while jobs run: a short job is then written once, not three times
# While jobs run, sleep this many times as long as a batch took: the ledger uses at most a tenth of
# the loop, and a third once it is LAG_SECONDS behind, which keeps up with any load.
BUSY_SLEEP_FACTOR = 9.0
LAG_SECONDS = 10.0
LAG_SLEEP_FACTOR = 2.0
BLOCK_SECONDS = 4.0  # of an idle read; shorter than the connection's timeout
# Per transaction, about.
MAX_ROWS = 500
MAX_BYTES = 4 << 20
REDIS_JOBS = 100  # per call to Redis, which does nothing else meanwhile
TAKEOVER_LEASES = 6.0  # of inactivity, until another consumer's pending entries are taken over
MAX_PAUSE_SECONDS = 5.0  # between two tries; also the longest batch that BUSY_SLEEP_FACTOR sees
SWEEP_SECONDS = 600.0  # between two searches for rows to remove, about
SWEEP_ROWS = 500  # removed at once

log = structlog.get_logger("ledger")


class Projection:
    """One consumer of the events; leaves most of the loop's time to jobs that are `running`."""

    def __init__(
        self,
        events: JobEvents,
        clock: RedisClock,
        ledger: Ledger,
        settings: Settings,
        *,
        consumer: str,
        running: Sized,
        metrics: WorkerMetrics,
    ) -> None:
        self._events, self._clock = events, clock
        self._ledger, self._settings = ledger, settings
        self._consumer, self._running, self._metrics = consumer, running, metrics
        self.takeover_seconds = TAKEOVER_LEASES * settings.lease
        self.check_seconds = settings.lease  # between two searches for entries to take over
        self._checked = 0.0
        self._more = False  # the last read was full: the next one need not wait
        self._swept = time.monotonic() - SWEEP_SECONDS * random.random()  # workers take turns

    async def run(self) -> None:
        """Project until cancelled; log once when Redis or SQL fails, and once when it is back.

        No error ends it, since it would end the worker, and the jobs do not need the ledger.
        """
        backoff = Backoff(max_seconds=MAX_PAUSE_SECONDS)
        failing, rejoin = False, True
        while True:
            try:
                if rejoin:
                    await self._join()
                rejoin = not await self.step(BLOCK_SECONDS)
                await self.sweep()
            except Exception as error:
                if not failing:
                    known = isinstance(error, TandemError | RedisError)
                    log.warning(
                        "the ledger falls behind",
                        error=str(error)[:300],
                        exc_info=None if known else error,
                    )
                failing = rejoin = True
                await backoff.sleep()
                continue
            if failing:
                log.info("the ledger is catching up")
                backoff.reset()
            failing = False
            if not self._more:
                await asyncio.sleep(BUSY_PAUSE_SECONDS if self._running else PAUSE_SECONDS)

    async def _join(self) -> None:
        await self._ledger.database.open()
        await self._clock.sync()
        await self._events.join(self._settings.ledger_backlog)
        # Entries that this consumer held when something failed come first.
        while (
            held := await self._events.read_pending(self._consumer)
        ) is not None and held.entries:
            await self._project(held)

    async def step(self, block: float) -> bool:
        """Project what others left pending and what is new. False: join the stream again."""
        now = time.monotonic()
        if now - self._checked > self.check_seconds:
            self._checked = now
            await self._clock.sync()
            while (
                left := await self._events.take_over(self._consumer, idle=self.takeover_seconds)
            ).entries:
                await self._project(left)
        batch = await self._events.read_new(self._consumer, block=block)
        if batch is None:
            self._more = False
            return False
        many = len(batch.jobs) >= MAX_ROWS and not self._running
        self._more = many or len(batch.entries) >= READ_ENTRIES
        if batch.entries:
            await self._project(batch)
        return True

    async def _project(self, batch: EventBatch) -> None:
        ids, oldest = batch.jobs, batch.entries[0]
        done = 0
        while done < len(ids):
            began = time.monotonic()
            facts = await self._facts(ids[done : done + MAX_ROWS], oldest)
            found = [
                (id, values)
                for id, values in zip(ids[done : done + len(facts)], facts, strict=True)
                if values is not None
            ]
            rows = [row_from_values(id, values) for id, values in found]
            read = time.monotonic()
            await self._save(rows)
            saved = time.monotonic()
            for (id, values), row in zip(found, rows, strict=True):
                if row.final:
                    job_ended(self._metrics, id, values)
            finals = [(row.id, row.stamp) for row in rows if row.final]
            for start in range(0, len(finals), REDIS_JOBS):
                await self._events.acknowledge([], finals[start : start + REDIS_JOBS])
            observe = self._metrics.observe_batch
            observe("ledger_read", read - began, len(rows))
            observe("ledger_write", saved - read, len(rows))
            observe("ledger_acknowledge", time.monotonic() - saved, len(rows))
            done += len(facts)
            if self._running:
                seconds = min(time.monotonic() - began, MAX_PAUSE_SECONDS)
                await asyncio.sleep(self._sleep_factor(oldest) * seconds)
        await self._events.acknowledge(batch.entries, [])

    async def _facts(self, ids: Sequence[str], oldest: str) -> list[LedgerValues | None]:
        """The facts of the first of these jobs: of all of them, unless they are large."""
        facts: list[LedgerValues | None] = []
        max_bytes = MAX_BYTES * REDIS_JOBS // MAX_ROWS
        while len(facts) < len(ids):
            batch = ids[len(facts) : len(facts) + REDIS_JOBS]
            facts += await self._events.ledger_values(batch, max_bytes=max_bytes, entry=oldest)
            if len(facts) % REDIS_JOBS:
                break
        return facts

    async def _save(self, rows: Sequence[JobRow]) -> None:
        """Write the rows. A row that the database rejects is logged and left out."""
        if not rows:
            return
        try:
            await self._ledger.save(rows)
        except TandemError:
            raise
        except Exception as error:
            if len(rows) == 1:
                log.exception("cannot write a job to the ledger", job_id=rows[0].id, exc_info=error)
                return
            for row in rows:
                await self._save([row])

    async def sweep(self) -> None:
        """Remove a batch of rows whose retention is over; all are removed every SWEEP_SECONDS."""
        if time.monotonic() - self._swept < SWEEP_SECONDS:
            return
        settings = self._settings
        keep = {
            State.SUCCEEDED: settings.ledger_keep,
            State.CANCELLED: settings.ledger_keep,
            State.FAILED: settings.ledger_keep_failed,
        }
        now = await self._clock.earliest()
        removed = await self._ledger.expire(keep, now=now, limit=SWEEP_ROWS)
        if removed:
            log.info("old jobs removed from the ledger", removed=removed)
        if removed < SWEEP_ROWS:
            self._swept = time.monotonic() - SWEEP_SECONDS * random.uniform(0, 0.5)

    def _sleep_factor(self, oldest: str) -> float:
        """The factor for the age of the oldest entry, whose id contains the time."""
        seconds = self._clock.now() - int(oldest.partition("-")[0]) / 1000
        return BUSY_SLEEP_FACTOR if seconds < LAG_SECONDS else LAG_SLEEP_FACTOR
