"""Checks of the ledger: rows of unfinished jobs against the records in Redis."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace

from tandem_shared.doctor.findings import Finding, collect
from tandem_shared.jobs.states import OPEN
from tandem_shared.ledger.ledger import Ledger
from tandem_shared.ledger.rows import JobRow, row_from_values
from tandem_shared.queue.queue import Queue

MAX_LAG_SECONDS = 120.0  # a larger lag is a finding
MARGIN_SECONDS = 30.0  # beyond its lag, until the ledger must have written an event
BATCH_ROWS = 250
BATCH_BYTES = 4 << 20  # of records read at once, about


class LedgerCheck:
    """Checks the ledger; every method raises Unavailable if it or Redis does not answer."""

    def __init__(
        self,
        ledger: Ledger,
        queue: Queue,
        *,
        max_lag: float = MAX_LAG_SECONDS,
        margin: float = MARGIN_SECONDS,
    ) -> None:
        self._ledger, self._queue = ledger, queue
        self._max_lag, self._margin = max_lag, margin

    async def find(self) -> list[Finding]:
        """What seems broken, at most MAX_FINDINGS."""
        return await collect(self._find())

    async def _find(self) -> AsyncGenerator[list[Finding], None]:
        yield await self._lag()
        async for rows in self._ledger.unfinished(OPEN, BATCH_ROWS):
            yield [finding async for finding, _ in self._compare(rows)]

    async def _lag(self) -> list[Finding]:
        lag = await self._queue.events.lag()
        if lag is None or lag.seconds <= self._max_lag:
            return []
        return [Finding("ledger-behind", "events", f"{lag.entries} entries, {lag.seconds:.0f} s")]

    async def _compare(
        self, rows: Sequence[tuple[str, int]]
    ) -> AsyncIterator[tuple[Finding, JobRow | None]]:
        """Yield what is wrong with these rows (id, stamp), each with the row as it should be."""
        # Read the clock before the lag: events written in between are not required yet. The lag is
        # rounded to ms.
        now = await self._queue.clock.sync()
        lag = await self._queue.events.lag()
        required = now - (lag.seconds + 0.001 if lag and lag.entries else 0.0) - self._margin
        # This Redis has no records of other shards' jobs.
        rows = [row for row in rows if row[0].endswith(self._queue.shard)]
        while rows:
            records = await self._queue.events.ledger_values(
                [id for id, _ in rows[:BATCH_ROWS]], max_bytes=BATCH_BYTES
            )
            for (id, stamp), values in zip(rows, records, strict=False):
                if values is None:
                    yield Finding("row-without-record", id, str(stamp)), None
                    continue
                row = row_from_values(id, values)
                if row.stamp > stamp and row.stamp / 1e6 < required:
                    yield Finding("row-behind", id, str(stamp)), row
            rows = rows[len(records) :]

    async def recheck(self, suspects: Sequence[Finding], *, fix: bool = False) -> list[Finding]:
        """The suspects that are still broken, fixed if possible and asked for."""
        stamps = {one.subject: int(one.seen) for one in suspects if one.code != "ledger-behind"}
        still = await self._lag() if len(stamps) < len(suspects) else []
        ids = list(stamps)
        for start in range(0, len(ids), BATCH_ROWS):
            rows = await self._ledger.stamps(ids[start : start + BATCH_ROWS])
            same = [(id, stamp) for id, stamp in rows if stamps[id] == stamp]
            async for finding, row in self._compare(same):
                fixed = fix and await self._fix(finding, row)
                still.append(replace(finding, seen="", fixed=fixed))
        return still

    async def _fix(self, finding: Finding, row: JobRow | None) -> bool:
        if row is not None:
            await self._ledger.save([row])
            if row.final:
                await self._queue.events.acknowledge([], [(row.id, row.stamp)])
            return True
        # If this Redis has never seen the ledger, it may be the wrong one: end no job.
        if await self._queue.events.lag() is None:
            return False
        now = await self._queue.clock.sync()
        await self._ledger.fail_lost(finding.subject, int(finding.seen), now=now)
        return True

    async def known(self, ids: Sequence[str]) -> set[str]:
        """Those of these jobs that have a row."""
        return {id for id, _ in await self._ledger.stamps(ids)}
