"""Lists of jobs, newest first: a filter, the SQL that finds a page of it, and the same filter for records in hand.

Every way to look for jobs begins with an index that ends in the id: (tenant, [task | queue,] state,
id), a state at a time, merged; or (tenant, tag, job). What the index cannot say is asked of the
rows that it finds, in portions, so that no page costs more than its portions, however rare what it
looks for.
"""

from collections.abc import Sequence

import msgspec

from tandem_shared.jobs.ids import id_prefix
from tandem_shared.jobs.record import Record
from tandem_shared.jobs.states import State
from tandem_shared.ledger.rows import search_text, tag_text

STATES = tuple(State)
AFTER_ALL_IDS = "~"  # sorts behind every id
CLOCK_SKEW_SECONDS = (
    10.0  # seconds that the clocks of the APIs, which make the ids, and of Redis may differ
)


class JobFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs of a tenant are asked for; `since` inclusive and `until` exclusive, µs of the submission."""

    tenant: str = "default"
    states: frozenset[State] = frozenset()
    task: str | None = None
    queue: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    since: int | None = None
    until: int | None = None
    q: str | None = None  # case folded

    def matches(self, record: Record) -> bool:
        """Whether a record is among them."""
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


class Query:
    """The statements for one filter; `?` for each value."""

    def __init__(self, wanted: JobFilter, columns: Sequence[str]) -> None:
        self._wanted = wanted
        self._columns = ", ".join(f"j.{name}" for name in columns)
        self._rest, self._values = self._residue()
        self.exact = not self._rest  # the index alone says which

    def _residue(self) -> tuple[str, list[str | int]]:
        """What is asked of each row that the index finds."""
        one = self._wanted
        parts: list[str] = []
        values: list[str | int] = []
        if one.tags:
            if one.states:
                parts.append(f"j.state IN ({', '.join('?' * len(one.states))})")
                values += sorted(state.value for state in one.states)
            if one.task is not None:
                parts.append("j.task = ?")
                values.append(one.task)
        if one.queue is not None and (one.tags or one.task is not None):
            parts.append("j.queue = ?")
            values.append(one.queue)
        for name, value in one.tags[1:]:
            parts.append(
                "EXISTS (SELECT 1 FROM tandem_tags t WHERE t.tenant = ? AND t.tag = ? AND t.job = j.id)"
            )
            values += [one.tenant, tag_text(name, value)]
        if one.since is not None:
            parts.append("j.submitted >= ?")
            values.append(one.since)
        if one.until is not None:
            parts.append("j.submitted < ?")
            values.append(one.until)
        if one.q is not None:
            parts.append("j.words LIKE ? ESCAPE '!'")
            escaped = one.q.replace("!", "!!").replace("%", "!%").replace("_", "!_")
            values.append(f"%{escaped}%")
        return " AND ".join(parts), values

    def _found(self, before: str | None, many: int) -> tuple[str, list[str]]:
        """The ids that the index finds below `before`, the newest first, at most `many`."""
        one = self._wanted
        below = [before] if before is not None else []
        if one.until is not None:
            below.append(id_prefix(one.until / 1e6 + CLOCK_SKEW_SECONDS))
        low = id_prefix(one.since / 1e6 - CLOCK_SKEW_SECONDS) if one.since is not None else ""
        bounds = (min(below, default=AFTER_ALL_IDS), low)
        if one.tags:
            return self._branch("tandem_tags", "", "tag", "job", many), [
                one.tenant, *_between(tag_text(*one.tags[0]), bounds),
            ]  # fmt: skip
        name, key = ("task", one.task) if one.task is not None else ("queue", one.queue)
        fixed = f"{name} = ? AND " if key is not None else ""
        branch = self._branch("tandem_jobs", fixed, "state", "id", many)
        branches: list[str] = []
        values: list[str] = []
        for state in sorted(one.states or STATES):
            branches.append(f"SELECT id FROM ({branch}) AS b{len(branches)}")  # noqa: S608 - our own words
            values += [
                one.tenant,
                *([key] if key is not None else []),
                *_between(state.value, bounds),
            ]
        return f"{' UNION ALL '.join(branches)} ORDER BY id DESC LIMIT {many}", values

    @staticmethod
    def _branch(table: str, fixed: str, column: str, id: str, many: int) -> str:
        """One run along an index; values: the tenant, the fixed one, and those of `_between`."""
        # In pairs, and ordered by both, since for `column = ? ORDER BY id` PostgreSQL may take the
        # primary key's index and throw away what it finds: for what is rare that is the whole
        # table.
        pair = f"({column}, {id})"
        return (
            f"SELECT {id} AS id FROM {table} WHERE tenant = ? AND {fixed}{pair} < (?, ?) AND {pair} >= (?, ?)"  # noqa: S608 - our own words
            f" ORDER BY {column} DESC, {id} DESC LIMIT {many}"
        )

    def page(self, before: str | None, many: int, limit: int) -> tuple[str, list[str | int]]:
        """Up to `limit` rows among the next `many` that the index finds."""
        found, values = self._found(before, many)
        rest = f" WHERE {self._rest}" if self._rest else ""
        text = (
            f"SELECT {self._columns} FROM ({found}) AS f JOIN tandem_jobs j ON j.id = f.id{rest}"  # noqa: S608 - ours
            f" ORDER BY f.id DESC LIMIT {limit}"
        )
        return text, [*values, *self._values]

    def reach(self, before: str | None, many: int) -> tuple[str, list[str]]:
        """Where the next `many` end, and how many there are."""
        found, values = self._found(before, many)
        return f"SELECT min(id), count(*) FROM ({found}) AS f", values  # noqa: S608 - ours


def _between(value: str, bounds: tuple[str, str]) -> list[str]:
    return [value, bounds[0], value, bounds[1]]
