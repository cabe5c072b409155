"""The ledger: every job in SQL, for lists, search, history, and for the time after its record has left Redis.

Redis remains the truth for what is not final. Rows follow it by the event stream
(worker/tandem_worker/runtime/ledger.py): a row is replaced by one with a higher stamp only, so the
same events may come twice and in any order.
"""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from tandem_shared.jobs.ids import id_prefix
from tandem_shared.jobs.record import Record
from tandem_shared.jobs.replay import ReplayInput
from tandem_shared.jobs.states import FINAL, State
from tandem_shared.ledger.database import Database, Statement
from tandem_shared.ledger.query import AFTER_ALL_IDS, JobFilter, Query
from tandem_shared.ledger.rows import COLUMNS, IMMUTABLE, JobRow, record_from_row, replay_tag
from tandem_shared.settings import Settings

SCAN_ROWS = (
    500,
    2_000,
    4_000,
)  # rows that are looked at, portion after portion, the last size from then on
PAGE_SECONDS = 0.03  # seconds after which a page is given as far as it has come
SEARCH_SECONDS = 0.25  # the same where a text is looked for, which no index helps with
EXPORT_ROWS = 100  # rows at once
# The error of a job that Redis lost.
LOST_ERROR = '{"type":"record_lost","message":"the queue lost this job before it ended","retryable":true,"attempt":0}'

_WRITTEN = ("id", *COLUMNS, "payload", "words")
_READ = ("id", *COLUMNS)
_CHANGING = [name for name in _WRITTEN[1:] if name not in IMMUTABLE]
_UPSERT = (
    f"INSERT INTO tandem_jobs ({', '.join(_WRITTEN)}) VALUES ({', '.join('?' * len(_WRITTEN))})"  # noqa: S608 - ours
    f" ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _CHANGING)}"
    " WHERE excluded.stamp > tandem_jobs.stamp"
)
# Of jobs that are there: a late writer gives no tags to one that is buried.
_TAG = (
    "INSERT INTO tandem_tags (tenant, tag, job)"
    " SELECT tenant, CAST(? AS varchar(512)), id FROM tandem_jobs WHERE id = ? AND tenant = ?"
    " ON CONFLICT (tenant, tag, job) DO NOTHING"
)
# Nobody's, as of the end of time: no row of the job is newer, none of a tenant's questions finds
# it, and it goes as cancelled ones do.
_GRAVE: dict[str, str | int | None] = {
    **dict.fromkeys(_WRITTEN[1:]),
    **dict.fromkeys(("tenant", "task", "queue", "priority", "words"), ""),
    **dict.fromkeys(("attempt", "max_attempts", "submitted", "due", "version"), 0),
    "state": "cancelled",
    "stamp": (1 << 63) - 1,
    "options": "{}",
}
_BURY = (
    f"INSERT INTO tandem_jobs ({', '.join(_WRITTEN)}) VALUES ({', '.join('?' * len(_WRITTEN))})"  # noqa: S608 - ours
    f" ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _GRAVE)}"
)
_OVER = "tenant = ? AND state = ? AND id < ? AND ended < ?"
# A replay stays for as long as what it replays, which else would look as if it had none.
_ALONE = (
    "NOT EXISTS (SELECT 1 FROM tandem_tags t JOIN tandem_jobs o ON o.id = substr(t.tag, 2){} AND o.tenant = j.tenant"
    " WHERE t.job = j.id AND t.tag LIKE '=%')"
)
_FORGET = ("DELETE FROM tandem_tags WHERE job = ?", "DELETE FROM tandem_jobs WHERE id = ?")


class JobPage(NamedTuple):
    """Jobs, the newest first; `next`: the id below which the list goes on, None at its end."""

    records: list[Record]
    next: str | None


class Ledger:
    """The ledger over one database; every method raises Unavailable while that does not serve."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def save(self, rows: Sequence[JobRow]) -> None:
        """Writes these jobs where they are newer than what is there, all or none; at most one row a job."""
        # In one order, so that two writers never wait for each other.
        ordered = sorted(rows, key=lambda one: one.id)
        statements: list[Statement] = [(_UPSERT, [(one.id, *one.values) for one in ordered])]
        if tags := [(tag, one.id, one.tenant) for one in ordered for tag in one.tags]:
            statements.append((_TAG, tags))
        await self.database.write(statements)

    async def get(self, id: str, *, tenant: str) -> Record | None:
        """The job as it was last written; None if there is none, or if it is another tenant's."""
        text = f"SELECT {', '.join(_READ)} FROM tandem_jobs WHERE id = ? AND tenant = ?"  # noqa: S608 - ours
        rows = await self.database.read(text, [id, tenant])
        return record_from_row(_READ, rows[0]) if rows else None

    async def payload(self, id: str, *, tenant: str) -> bytes | None:
        """The payload of a final job, JSON; None as with `get`."""
        rows = await self.database.read(
            "SELECT payload FROM tandem_jobs WHERE id = ? AND tenant = ?", [id, tenant]
        )
        return rows[0][0].encode() if rows and rows[0][0] is not None else None

    async def replay_inputs(self, ids: Sequence[str], *, tenant: str) -> dict[str, ReplayInput]:
        """What replays of these final jobs need, as far as they are known."""
        text = (
            "SELECT id, payload, concurrency_key, concurrency_limit FROM tandem_jobs"  # noqa: S608 - only places for values
            f" WHERE tenant = ? AND payload IS NOT NULL AND id IN ({', '.join('?' * len(ids))})"
        )
        rows = await self.database.read(text, [tenant, *ids]) if ids else []
        return {id: ReplayInput(payload.encode(), key, limit) for id, payload, key, limit in rows}

    async def replayed(self, ids: Sequence[str], *, tenant: str) -> set[str]:
        """Which of these have a replay."""
        text = (
            f"SELECT tag FROM tandem_tags WHERE tenant = ? AND tag IN ({', '.join('?' * len(ids))})"  # noqa: S608 - likewise
        )
        rows = await self.database.read(text, [tenant, *map(replay_tag, ids)]) if ids else []
        return {row[0].removeprefix(replay_tag("")) for row in rows}

    async def find(self, wanted: JobFilter, *, before: str | None = None, limit: int) -> JobPage:
        """Up to `limit` jobs with an id below `before`; fewer, even none, where they are so rare that it takes long."""
        query = Query(wanted, _READ)
        records: list[Record] = []
        end_of_time = time.monotonic() + (PAGE_SECONDS if wanted.q is None else SEARCH_SECONDS)
        turn = 0
        while True:
            left = limit - len(records)
            many = left + 1 if query.exact else SCAN_ROWS[min(turn, len(SCAN_ROWS) - 1)]
            rows = await self.database.read(*query.page(before, many, left + 1))
            records += [record_from_row(_READ, row) for row in rows[:left]]
            if len(rows) > left:
                return JobPage(records, records[-1].id)
            if query.exact:
                return JobPage(records, None)
            [(end, found)] = await self.database.read(*query.reach(before, many))
            if found < many:
                return JobPage(records, None)
            before, turn = end, turn + 1
            if len(records) == limit or time.monotonic() > end_of_time:
                return JobPage(records, before)

    async def tombstone(self, id: str) -> None:
        """Forgets a job for good: what is still on its way to the ledger does not bring it back.

        For that something of it stays, for as long as cancelled jobs are kept, in which nothing of
        it can be seen.
        """
        grave = {**_GRAVE, "ended": int(time.time() * 1e6)}
        statements: list[Statement] = [(_BURY, [(id, *grave.values())]), (_FORGET[0], [(id,)])]
        await self.database.write(statements)

    async def _remove(self, ids: Sequence[str]) -> None:
        """Removes these jobs."""
        rows = [(id,) for id in sorted(ids)]
        await self.database.write([(text, rows) for text in _FORGET])

    async def expire(self, keep: Mapping[State, float], *, limit: int = 500) -> int:
        """Removes up to `limit` final jobs that ended longer ago than their state is kept, in seconds; how many."""
        removed = 0
        now = time.time()
        alone = _ALONE.format(
            "" if self.database.sqlite else ' COLLATE "C"'
        )  # as ids are in PostgreSQL
        for tenant in (*await self._tenants(), _GRAVE["tenant"]):
            for state, seconds in keep.items():
                if state not in FINAL or removed >= limit:
                    continue
                end = now - seconds
                # Who ended before that was submitted before that.
                text = f"SELECT id FROM tandem_jobs j WHERE {_OVER} AND {alone} ORDER BY id LIMIT {limit - removed}"  # noqa: S608 - ours
                values = [tenant, state.value, id_prefix(end + 60.0), int(end * 1e6)]
                rows = await self.database.read(text, values)
                if rows:
                    await self._remove([row[0] for row in rows])
                removed += len(rows)
        return removed

    async def unfinished(
        self, states: Sequence[State], many: int
    ) -> AsyncIterator[list[tuple[str, int]]]:
        """Every job in one of these states, `many` at a time: (id, stamp)."""
        text = (
            "SELECT id, stamp FROM tandem_jobs WHERE tenant = ? AND (state, id) > (?, ?) AND (state, id) < (?, ?)"  # noqa: S608 - ours
            f" ORDER BY state, id LIMIT {many}"  # a pair, as in listing.py
        )
        for tenant in await self._tenants():
            for state in states:
                last = ""
                while rows := await self.database.read(
                    text, [tenant, state.value, last, state.value, AFTER_ALL_IDS]
                ):
                    yield [(id, int(stamp)) for id, stamp in rows]
                    last = rows[-1][0]

    async def stamps(self, ids: Sequence[str]) -> list[tuple[str, int]]:
        """Those of these jobs that there are: (id, stamp)."""
        if not ids:
            return []
        text = f"SELECT id, stamp FROM tandem_jobs WHERE id IN ({', '.join('?' * len(ids))})"  # noqa: S608 - no values
        return [(id, int(stamp)) for id, stamp in await self.database.read(text, ids)]

    async def give_up(self, id: str, stamp: int) -> None:
        """Ends a job that Redis has lost as failed, if it still has this stamp."""
        text = (
            "UPDATE tandem_jobs SET state = 'failed', stamp = stamp + 1, ended = ?, error = ?, words = words || ?"
            " WHERE id = ? AND stamp = ?"
        )
        await self.database.write(
            [(text, [(int(time.time() * 1e6), LOST_ERROR, " record_lost", id, stamp)])]
        )

    async def _tenants(self) -> list[str]:
        tenants: list[str] = []
        # one step along the index
        text = "SELECT tenant FROM tandem_jobs WHERE tenant > ? ORDER BY tenant LIMIT 1"
        while rows := await self.database.read(text, [tenants[-1] if tenants else ""]):
            tenants.append(rows[0][0])
        return tenants

    async def export(
        self,
        *,
        since: float | None = None,
        until: float | None = None,
        states: Sequence[State] = (),
    ) -> AsyncIterator[tuple[Record, bytes | None]]:
        """Every job of every tenant with its payload, the oldest first; `since` and `until` seconds since the epoch."""
        parts = ["id > ?", "tenant <> ''"]
        values: list[str | int] = [id_prefix(since - 60.0) if since is not None else ""]
        if since is not None:
            parts.append("submitted >= ?")
            values.append(int(since * 1e6))
        if until is not None:
            parts += ["submitted < ?", "id < ?"]
            values += [int(until * 1e6), id_prefix(until + 60.0)]
        if states:
            parts.append(f"state IN ({', '.join('?' * len(states))})")
            values += [state.value for state in states]
        text = (
            f"SELECT {', '.join((*_READ, 'payload'))} FROM tandem_jobs WHERE {' AND '.join(parts)}"  # noqa: S608 - ours
            f" ORDER BY id LIMIT {EXPORT_ROWS}"
        )
        while rows := await self.database.read(text, values):
            for *row, payload in rows:
                yield record_from_row(_READ, row), None if payload is None else payload.encode()
            values[0] = rows[-1][0]


@asynccontextmanager
async def open_ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """The ledger of the settings; it connects when first used. Raises Misconfigured for a URL that is none."""
    database = Database(settings.database_url)
    try:
        yield Ledger(database)
    finally:
        await database.close()
