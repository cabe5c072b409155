"""The ledger: every job in SQL, for lists, search and history beyond the life of its Redis record.

Redis holds the truth about jobs that are not final. Rows follow it by the event stream
(worker/tandem_worker/runtime/ledger.py). A row is replaced only by one with a higher stamp, so the
same events may arrive twice and in any order.
"""

import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from tandem_shared.jobs.ids import id_prefix
from tandem_shared.jobs.record import Record
from tandem_shared.jobs.replay import ReplayInput
from tandem_shared.jobs.states import FINAL, State
from tandem_shared.ledger.database import Database, Statement
from tandem_shared.ledger.query import AFTER_ALL_IDS, JobFilter, Query, placeholders
from tandem_shared.ledger.rows import (
    COLUMNS,
    IMMUTABLE,
    RECORD_COLUMNS,
    JobRow,
    record_from_row,
    replay_tag,
)
from tandem_shared.settings import Settings

SCAN_ROWS = (500, 2_000, 4_000)  # per scan of an index: the first, the second, and all later ones
# A page ends after this time with what it has found so far; a text search gets longer, since no
# index helps it.
PAGE_SECONDS, SEARCH_SECONDS = 0.03, 0.25
EXPORT_ROWS = 100
END_OF_TIME = 253_402_300_800.0  # seconds since the epoch: the year 10000
LOST_ERROR = (
    '{"type":"record_lost","message":"the queue lost this job before it ended",'
    '"retryable":true,"attempt":0}'
)

MAX_PAGE_BYTES = 1 << 20  # about: a single larger job still passes
_LARGE = ("result", "files", "progress", "error", "options", "attempts")

_WRITTEN = ("id", *COLUMNS, "payload", "words")
_READ = ", ".join(RECORD_COLUMNS)


def _upsert(updated: Iterable[str]) -> str:
    changes = ", ".join(f"{name} = excluded.{name}" for name in updated)
    return (
        f"INSERT INTO tandem_jobs ({', '.join(_WRITTEN)}) VALUES ({placeholders(_WRITTEN)})"
        f" ON CONFLICT (id) DO UPDATE SET {changes}"
    )


_SAVE_JOB = (
    _upsert(name for name in _WRITTEN[1:] if name not in IMMUTABLE)
    + " WHERE excluded.stamp > tandem_jobs.stamp"
)
# Only for jobs that exist: a late writer must not add tags to a tombstone.
_SAVE_TAG = (
    "INSERT INTO tandem_tags (tenant, tag, job)"
    " SELECT tenant, CAST(? AS varchar(512)), id FROM tandem_jobs WHERE id = ? AND tenant = ?"
    " ON CONFLICT (tenant, tag, job) DO NOTHING"
)
# What stays of a deleted job. `stamp` is 2**63 - 1, so no late upsert can overwrite it; `tenant` is
# "", so no query finds it; `state` is cancelled, so `expire` removes it with the cancelled jobs.
_TOMBSTONE: dict[str, Any] = {
    **dict.fromkeys(_WRITTEN[1:]),
    **dict.fromkeys(("tenant", "task", "queue", "priority", "words"), ""),
    **dict.fromkeys(("attempt", "max_attempts", "submitted", "due", "version"), 0),
    "state": State.CANCELLED.value,
    "stamp": (1 << 63) - 1,
    "options": "{}",
}
_SAVE_TOMBSTONE = _upsert(_TOMBSTONE)
_DELETE_TAGS = "DELETE FROM tandem_tags WHERE job = ?"
_DELETE_JOB = "DELETE FROM tandem_jobs WHERE id = ?"
# A replay stays for as long as the job that it replays, which would otherwise seem not replayed.
# Ids have the collation "C" in PostgreSQL, and so must what is compared with them.
_EXPIRED = (
    "SELECT id FROM tandem_jobs j WHERE tenant = ? AND state = ? AND id < ? AND ended < ?"
    " AND NOT EXISTS (SELECT 1 FROM tandem_tags t"
    " JOIN tandem_jobs o ON o.id = substr(t.tag, 2){collation} AND o.tenant = j.tenant"
    " WHERE t.job = j.id AND t.tag LIKE '=%') ORDER BY id LIMIT {limit}"
)
# One step along the index per tenant.
_TENANTS = (
    "WITH RECURSIVE t(tenant) AS (SELECT min(tenant) FROM tandem_jobs WHERE tenant > ''"
    " UNION ALL SELECT (SELECT min(j.tenant) FROM tandem_jobs j WHERE j.tenant > t.tenant)"
    " FROM t WHERE t.tenant IS NOT NULL) SELECT tenant FROM t WHERE tenant IS NOT NULL"
)


def _fitting(rows: Sequence[Sequence[Any]], max_bytes: int) -> Iterator[str]:
    """The ids of the first of these rows (id, bytes) that fit; always at least one of a page."""
    for id, size in rows:
        if max_bytes <= 0:
            return
        yield id
        max_bytes -= size


class JobPage(NamedTuple):
    """Jobs, newest first; the list continues below the id `next`, which is None at its end."""

    records: list[Record]
    next: str | None


class Ledger:
    """The ledger in one database. Every method raises Unavailable while that cannot serve."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def ping(self) -> None:
        """Connect, migrate and read. Raises Unavailable."""
        await self.database.read("SELECT 1")

    async def save(self, rows: Sequence[JobRow]) -> None:
        """Write the jobs that are newer than their rows, all or none; at most one row per job."""
        # Always in the order of ids, so that two writers never deadlock.
        ordered = sorted(rows, key=lambda row: row.id)
        statements: list[Statement] = [(_SAVE_JOB, [(row.id, *row.values) for row in ordered])]
        if tags := [(tag, row.id, row.tenant) for row in ordered for tag in row.tags]:
            statements.append((_SAVE_TAG, tags))
        await self.database.write(statements)

    async def get(self, id: str, *, tenant: str) -> Record | None:
        """The job as last written; None if it is unknown or belongs to another tenant."""
        sql = f"SELECT {_READ} FROM tandem_jobs WHERE id = ? AND tenant = ?"
        rows = await self.database.read(sql, [id, tenant])
        return record_from_row(rows[0]) if rows else None

    async def payload(self, id: str, *, tenant: str) -> bytes | None:
        """The payload of a final job, JSON; None as with `get`."""
        replay_inputs = await self.replay_inputs([id], tenant=tenant)
        return replay_inputs[id].payload if replay_inputs else None

    async def replay_inputs(self, ids: Sequence[str], *, tenant: str) -> dict[str, ReplayInput]:
        """What replays of these jobs need; jobs that are unknown or not final are left out."""
        sql = (
            "SELECT id, payload, concurrency_key, concurrency_limit FROM tandem_jobs"
            f" WHERE tenant = ? AND payload IS NOT NULL AND id IN ({placeholders(ids)})"
        )
        rows = await self.database.read(sql, [tenant, *ids]) if ids else []
        return {id: ReplayInput(payload.encode(), key, limit) for id, payload, key, limit in rows}

    async def replayed(self, ids: Sequence[str], *, tenant: str) -> set[str]:
        """Which of these jobs have a replay."""
        sql = f"SELECT tag FROM tandem_tags WHERE tenant = ? AND tag IN ({placeholders(ids)})"
        rows = await self.database.read(sql, [tenant, *map(replay_tag, ids)]) if ids else []
        return {tag.removeprefix(replay_tag("")) for (tag,) in rows}

    async def find(self, wanted: JobFilter, *, before: str | None = None, limit: int) -> JobPage:
        """Up to `limit` jobs with an id below `before`; fewer if they are rare or large."""
        measure = "length" if self.database.sqlite else "octet_length"
        sizes = " + ".join(f"coalesce({measure}(j.{name}), 0)" for name in _LARGE)
        query = Query(wanted, ("j.id", sizes))
        records: list[Record] = []
        deadline = time.monotonic() + (PAGE_SECONDS if wanted.q is None else SEARCH_SECONDS)
        scans = size = 0
        while True:
            missing = limit - len(records)
            count = missing + 1 if query.exact else SCAN_ROWS[min(scans, len(SCAN_ROWS) - 1)]
            rows = await self.database.read(*query.page(before, count, missing + 1))
            ids = list(_fitting(rows[:missing], MAX_PAGE_BYTES - size))
            records += await self._records(ids)
            size += sum(one for _, one in rows[: len(ids)])
            if len(ids) < len(rows):
                return JobPage(records, ids[-1] if ids else before)
            if query.exact:
                return JobPage(records, None)
            [(last, found)] = await self.database.read(*query.reach(before, count))
            if found < count:
                return JobPage(records, None)
            before, scans = last, scans + 1
            if len(records) == limit or time.monotonic() > deadline:
                return JobPage(records, before)

    async def _records(self, ids: Sequence[str]) -> list[Record]:
        """These jobs, newest first, without those that have just been removed."""
        sql = f"SELECT {_READ} FROM tandem_jobs WHERE id IN ({placeholders(ids)}) ORDER BY id DESC"
        return list(map(record_from_row, await self.database.read(sql, ids))) if ids else []

    async def tombstone(self, id: str, *, now: float) -> None:
        """Delete a job so that events still on their way to the ledger cannot bring it back.

        A row without any of its content stays for as long as cancelled jobs are kept. `now` is
        Redis' time, here and below.
        """
        values = {**_TOMBSTONE, "ended": int(now * 1e6)}.values()
        await self.database.write([(_SAVE_TOMBSTONE, [(id, *values)]), (_DELETE_TAGS, [(id,)])])

    async def expire(self, keep: Mapping[State, float], *, now: float, limit: int = 500) -> int:
        """Remove up to `limit` final jobs that ended longer ago than `keep` says for their state.

        `keep` is in seconds. Returns how many were removed.
        """
        removed = 0
        collation = "" if self.database.sqlite else ' COLLATE "C"'
        for tenant in (*await self._tenants(), _TOMBSTONE["tenant"]):
            for state, seconds in keep.items():
                if state not in FINAL:
                    continue
                end = now - seconds
                # A job that ended before `end` has an id from before it, give or take a skew.
                values = [tenant, state.value, id_prefix(end + 60.0), int(end * 1e6)]
                sql = _EXPIRED.format(collation=collation, limit=limit - removed)
                rows = sorted(await self.database.read(sql, values))
                if rows:
                    await self.database.write([(_DELETE_TAGS, rows), (_DELETE_JOB, rows)])
                removed += len(rows)
        return removed

    async def unfinished(
        self, states: Sequence[State], count: int
    ) -> AsyncIterator[list[tuple[str, int]]]:
        """Yield all jobs in one of these states, `count` at a time: (id, stamp)."""
        sql = (
            "SELECT id, stamp FROM tandem_jobs"
            " WHERE tenant = ? AND (state, id) > (?, ?) AND (state, id) < (?, ?)"
            f" ORDER BY state, id LIMIT {count}"  # by the pair, as in query.py
        )
        for tenant in await self._tenants():
            for state in states:
                last = ""
                while rows := await self.database.read(
                    sql, [tenant, state.value, last, state.value, AFTER_ALL_IDS]
                ):
                    yield [(id, int(stamp)) for id, stamp in rows]
                    last = rows[-1][0]

    async def stamps(self, ids: Sequence[str]) -> list[tuple[str, int]]:
        """Those of these jobs that the ledger has: (id, stamp)."""
        if not ids:
            return []
        sql = f"SELECT id, stamp FROM tandem_jobs WHERE id IN ({placeholders(ids)})"
        return [(id, int(stamp)) for id, stamp in await self.database.read(sql, ids)]

    async def fail_lost(self, id: str, stamp: int, *, now: float) -> None:
        """End a job that Redis has lost as failed, if it still has this stamp."""
        sql = (
            "UPDATE tandem_jobs SET state = 'failed', stamp = stamp + 1, ended = ?, error = ?,"
            " words = words || ? WHERE id = ? AND stamp = ?"
        )
        values = (int(now * 1e6), LOST_ERROR, " record_lost", id, stamp)
        await self.database.write([(sql, [values])])

    async def _tenants(self) -> list[str]:
        return [tenant for (tenant,) in await self.database.read(_TENANTS)]

    async def export(
        self,
        *,
        since: float = 0.0,
        until: float = END_OF_TIME,
        states: Collection[State] = (),
    ) -> AsyncIterator[tuple[Record, bytes | None]]:
        """Yield all jobs of all tenants with their payload, oldest first.

        `since` (inclusive) and `until` (exclusive) are seconds since the epoch, of the submission;
        no `states` means all.
        """
        wanted = [state.value for state in states or State]
        sql = (
            f"SELECT {_READ}, payload FROM tandem_jobs"
            " WHERE id > ? AND id < ? AND submitted >= ? AND submitted < ? AND tenant <> ''"
            f" AND state IN ({placeholders(wanted)}) ORDER BY id LIMIT {EXPORT_ROWS}"
        )
        # An id is made a moment before Redis dates the submission.
        ids = (id_prefix(since - 60.0), id_prefix(until + 60.0))
        values: list[str | int] = [*ids, int(since * 1e6), int(until * 1e6), *wanted]
        while rows := await self.database.read(sql, values):
            for *row, payload in rows:
                yield record_from_row(row), None if payload is None else payload.encode()
            values[0] = rows[-1][0]


@asynccontextmanager
async def open_ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """The ledger of these settings, which connects when first used. Raises Misconfigured."""
    database = Database(settings.database_url)
    try:
        yield Ledger(database)
    finally:
        await database.close()
