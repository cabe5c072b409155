"""Lists of jobs, newest first: a filter, the SQL for a page of it, and the same filter in Python.

Every query walks an index that ends in the id: (tenant, [task | queue,] state, id), one branch per
state, merged; or (tenant, tag, job). Conditions beyond the index are checked on the rows that it
finds, a bounded number at a time, so a page costs no more than that however rare its jobs are.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from tandem_shared.jobs.ids import id_prefix
from tandem_shared.jobs.record import Record
from tandem_shared.jobs.states import State
from tandem_shared.ledger.rows import search_text, tag_text

AFTER_ALL_IDS = "~"  # sorts behind every id
# An id is made a moment before Redis dates the submission, by an API's copy of Redis' clock.
CLOCK_SKEW_SECONDS = 10.0


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Selects a tenant's jobs, submitted from `since` on and before `until`, both in µs.

    With `open_queues`, due jobs of all other queues are shown as waiting, and selected as such.
    """

    tenant: str = "default"
    states: frozenset[State] = frozenset()
    task: str | None = None
    queue: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    since: int | None = None
    until: int | None = None
    q: str | None = None  # case folded
    open_queues: frozenset[str] | None = None

    @property
    def stored_states(self) -> frozenset[State]:
        """The states that the selected jobs have in the ledger."""
        waits = self.open_queues is not None and State.WAITING in self.states
        return self.states | {State.QUEUED} if waits else self.states

    def matches(self, record: Record) -> bool:
        """Whether the filter selects this job."""
        return (
            record.tenant == self.tenant
            and (not self.states or record.state in self.states)
            and (self.task is None or record.task == self.task)
            and (self.queue is None or record.queue == self.queue)
            and all(record.options.tags.get(name) == value for name, value in self.tags)
            and (self.since is None or record.submitted >= self.since)
            and (self.until is None or record.submitted < self.until)
            and (self.q is None or self.q in search_text(record))
        )


def placeholders(values: Sequence[Any] | frozenset[Any]) -> str:
    """A `?` for each value, as in `IN (…)`."""
    return ", ".join("?" * len(values))


class Query:
    """The statements for one filter, with `?` for each value; the columns belong to the row `j`."""

    def __init__(self, wanted: JobFilter, columns: Sequence[str]) -> None:
        self._wanted = wanted
        self._columns = ", ".join(columns)
        self._conditions = list(self._beyond_the_index())
        self.exact = not self._conditions  # the index finds matching jobs only

    def _beyond_the_index(self) -> Iterator[tuple[str, list[Any]]]:
        """The conditions, with their values, to check on each row that the index finds."""
        wanted = self._wanted
        if wanted.open_queues is not None:
            within = "NOT IN" if State.WAITING in wanted.states else "IN"
            queues = sorted(wanted.open_queues) or [""]
            yield f"(j.state <> 'queued' OR j.queue {within} ({placeholders(queues)}))", queues
        if wanted.tags:
            if wanted.states:
                states = sorted(state.value for state in wanted.stored_states)
                yield f"j.state IN ({placeholders(states)})", states
            if wanted.task is not None:
                yield "j.task = ?", [wanted.task]
        if wanted.queue is not None and (wanted.tags or wanted.task is not None):
            yield "j.queue = ?", [wanted.queue]
        for name, value in wanted.tags[1:]:
            match = "t.tenant = ? AND t.tag = ? AND t.job = j.id"
            values = [wanted.tenant, tag_text(name, value)]
            yield f"EXISTS (SELECT 1 FROM tandem_tags t WHERE {match})", values
        if wanted.since is not None:
            yield "j.submitted >= ?", [wanted.since]
        if wanted.until is not None:
            yield "j.submitted < ?", [wanted.until]
        if wanted.q is not None:
            escaped = wanted.q.replace("!", "!!").replace("%", "!%").replace("_", "!_")
            yield "j.words LIKE ? ESCAPE '!'", [f"%{escaped}%"]

    def _index_scan(self, before: str | None, count: int) -> tuple[str, list[Any]]:
        """SQL for the first `count` ids in the index below `before`, newest first."""
        wanted = self._wanted
        upper = before or AFTER_ALL_IDS
        if wanted.until is not None:
            upper = min(upper, id_prefix(wanted.until / 1e6 + CLOCK_SKEW_SECONDS))
        lower = "" if wanted.since is None else id_prefix(wanted.since / 1e6 - CLOCK_SKEW_SECONDS)
        if wanted.tags:
            tag = tag_text(*wanted.tags[0])
            values = [wanted.tenant, tag, upper, tag, lower]
            return _branch("tandem_tags", "", "tag", "job", count), values
        name, key = ("task", wanted.task) if wanted.task is not None else ("queue", wanted.queue)
        fixed, fixed_values = (f"{name} = ? AND ", [key]) if key is not None else ("", [])
        branch = _branch("tandem_jobs", fixed, "state", "id", count)
        states = sorted(wanted.stored_states or State)
        union = " UNION ALL ".join(f"SELECT id FROM ({branch}) AS b_{state}" for state in states)
        values = []
        for state in states:
            values += [wanted.tenant, *fixed_values, state.value, upper, state.value, lower]
        return f"{union} ORDER BY id DESC LIMIT {count}", values

    def page(self, before: str | None, count: int, limit: int) -> tuple[str, list[Any]]:
        """SQL for up to `limit` matching rows among the next `count` ids in the index."""
        scan, values = self._index_scan(before, count)
        conditions = " AND ".join(sql for sql, _ in self._conditions)
        where = f" WHERE {conditions}" if conditions else ""
        sql = (
            f"SELECT {self._columns} FROM ({scan}) AS f JOIN tandem_jobs j ON j.id = f.id{where}"
            f" ORDER BY f.id DESC LIMIT {limit}"
        )
        return sql, values + [value for _, values in self._conditions for value in values]

    def reach(self, before: str | None, count: int) -> tuple[str, list[Any]]:
        """SQL for the last of the next `count` ids in the index, and how many there are."""
        scan, values = self._index_scan(before, count)
        return f"SELECT min(id), count(*) FROM ({scan}) AS f", values


def _branch(table: str, fixed: str, column: str, id: str, count: int) -> str:
    """A walk along an index; values: tenant, those of `fixed`, then twice `column` and a bound."""
    # Compare and sort by the pair: for `column = ? ORDER BY id`, PostgreSQL may walk the primary
    # key and filter, which for rare values reads the whole table.
    pair = f"({column}, {id})"
    return (
        f"SELECT {id} AS id FROM {table}"
        f" WHERE tenant = ? AND {fixed}{pair} < (?, ?) AND {pair} >= (?, ?)"
        f" ORDER BY {column} DESC, {id} DESC LIMIT {count}"
    )
