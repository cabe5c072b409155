"""Whether the ledger agrees with the queue: rows of jobs that are not final, beside the records as they are."""

from collections.abc import Iterable, Sequence

from tandem_shared.doctor.findings import Finding
from tandem_shared.jobs.states import OPEN
from tandem_shared.ledger.ledger import Ledger
from tandem_shared.ledger.rows import JobRow, row_from_values
from tandem_shared.queue.queue import Queue

MAX_LAG_SECONDS = 120.0  # seconds that the ledger may be behind before it is a finding
MARGIN_SECONDS = 30.0  # seconds beyond its lag after which it should know what was told
BATCH_ROWS = 250  # rows that are compared at once
BATCH_BYTES = 4 << 20  # bytes of records that are read at once, about
MAX_FINDINGS = 5000  # findings


class LedgerCheck:
    """The look at one ledger; every method raises Unavailable when it or Redis does not answer."""

    def __init__(
        self,
        ledger: Ledger,
        queue: Queue,
        *,
        late: float = MAX_LAG_SECONDS,
        margin: float = MARGIN_SECONDS,
    ) -> None:
        self._ledger, self._queue = ledger, queue
        self._late, self._margin = late, margin

    async def look(self) -> list[Finding]:
        """All that seems not to hold, at most MOST; to be looked at again."""
        found = await self._lag()
        async for rows in self._ledger.unfinished(OPEN, BATCH_ROWS):
            found += [finding for finding, _ in await self._compare(rows)]
            if len(found) >= MAX_FINDINGS:
                break
        return found[:MAX_FINDINGS]

    async def _lag(self) -> list[Finding]:
        lag = await self._queue.events.lag()
        if lag is None or lag.seconds <= self._late:
            return []
        return [Finding("ledger-behind", "events", f"{lag.entries} entries, {lag.seconds:.0f} s")]

    async def _compare(
        self, rows: Sequence[tuple[str, int]]
    ) -> list[tuple[Finding, JobRow | None]]:
        """What is wrong with these (id, stamp), each with what should be written."""
        # All until then was read: the clock first, since what is told meanwhile need not be, and
        # lags are in ms.
        now = await self._queue.integrity.redis_time()
        lag = await self._queue.events.lag()
        read = now - (lag.seconds + 0.001 if lag and lag.entries else 0.0) - self._margin
        found: list[tuple[Finding, JobRow | None]] = []
        # Of another shard's jobs this Redis knows nothing.
        rows = [one for one in rows if one[0].endswith(self._queue.shard)]
        at = 0
        while at < len(rows):
            portion = rows[at : at + BATCH_ROWS]
            facts = await self._queue.events.ledger_values(
                [id for id, _ in portion], max_bytes=BATCH_BYTES
            )
            for (id, stamp), values in zip(portion, facts, strict=False):
                if values is None:
                    found.append((Finding("row-without-record", id, str(stamp)), None))
                    continue
                newest = row_from_values(id, values)
                if newest.stamp > stamp and newest.stamp / 1e6 < read:
                    found.append((Finding("row-behind", id, str(stamp)), newest))
            at += len(facts)
        return found

    async def again(self, findings: Iterable[Finding], *, mend: bool = False) -> list[Finding]:
        """Those that are still there, and mends them if asked to."""
        findings = list(findings)
        still = await self._lag() if any(one.word == "ledger-behind" for one in findings) else []
        stamps = {one.subject: int(one.seen) for one in findings if one.word != "ledger-behind"}
        # A Redis that never saw this ledger may be the wrong one: nothing is ended for its word.
        sure = await self._queue.events.lag() is not None
        ids = list(stamps)
        for start in range(0, len(ids), BATCH_ROWS):
            rows = await self._ledger.stamps(ids[start : start + BATCH_ROWS])
            for finding, now in await self._compare(
                [one for one in rows if stamps[one[0]] == one[1]]
            ):
                mended = mend
                if mend and now is not None:
                    await self._ledger.save([now])
                    if now.final:
                        await self._queue.events.acknowledge([], [(now.id, now.stamp)])
                elif mend and sure:
                    await self._ledger.fail_lost(finding.subject, stamps[finding.subject])
                else:
                    mended = False
                still.append(Finding(finding.word, finding.subject, mended=mended))
        return still

    async def knows(self, ids: Sequence[str]) -> set[str]:
        """Those of these jobs that have a row."""
        return {id for id, _ in await self._ledger.stamps(ids)}
