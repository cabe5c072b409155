"""Checks of a shard's invariants while it runs; doctor.lua and census.lua have the rules.

Keys are listed by SCAN and checked in small calls, so nothing is blocked for long. A rule that does
not hold is reported as a Violation; fixing one checks it again in the same call.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from redis.asyncio import Redis

from tandem_shared.jobs.record import RECORD_FIELDS, Record, parse
from tandem_shared.queue.messages import Segment, parse_segment
from tandem_shared.queue.reads import read_fields
from tandem_shared.queue.scripts import Scripts, translate_errors

CALL_SUBJECTS = 200  # checked per script call
SCAN_KEYS = 500  # keys or members per SCAN, about
MAX_COUNTED_JOBS = 5000  # of a kind of place; larger ones are only added up
MAX_VIOLATIONS = 5000
MAX_COUNTED_PLACES = 2000  # named to the count
MAX_SEGMENTS = 1000  # read per job

# By the first part of a key: what the key is checked as, and what its members are.
_KEYS = {
    "job": "job", "park": "place", "later": "place", "suspects": "place",
    "idem": "kin", "out": "kin", "cold": "kin", "steps": "kin",
    "worker": "worker", "tasks": "worker", "entries": "worker", "lock": "lock", "waits": "lock",
}  # fmt: skip
_MEMBERS = {
    "q": "entry", "park": "entry", "later": "entry", "leases": "entry", "suspects": "entry",
    "expiries": "entry", "slots": "holder", "waits": "wait",
}  # fmt: skip
_SETS = ("slots",)  # the other keys with members are sorted sets
_TIMED = ("leases", "agenda", "expiries", "gates")


class Violation(NamedTuple):
    """An invariant that does not hold: its word, its subject, what was seen; `kind` rechecks it."""

    kind: str
    word: str
    subject: str
    seen: str = ""


class CountMismatch(NamedTuple):
    """A kept count that differs from the jobs counted."""

    name: str  # '<queue> <state>'; the queue is '*' where there are too many jobs to look at
    kept: int
    counted: int


class Integrity:
    """The checks of one shard; every method raises Unavailable if Redis does not answer."""

    def __init__(self, redis: "Redis", prefix: str, scripts: Scripts) -> None:
        self._redis: Any = redis
        self._prefix, self._scripts = prefix, scripts
        self.checked_jobs = 0  # records that the last `check_all` met, about

    async def check_all(self) -> list[Violation]:
        """All violations, at most MAX_VIOLATIONS. Recheck them: some may have been passing."""
        self.checked_jobs = 0
        found: dict[Violation, None] = {}
        async for kind, subjects in self._subjects():
            if kind == "job":
                self.checked_jobs += len(subjects)
            found.update(dict.fromkeys(await self.check(kind, subjects)))
            if len(found) >= MAX_VIOLATIONS:
                break
        found.update(dict.fromkeys(await self.check("time", _TIMED)))
        return list(found)[:MAX_VIOLATIONS]

    async def check(
        self, kind: str, subjects: Sequence[str], *, fix: bool = False
    ) -> list[Violation]:
        """What does not hold for these subjects at this moment."""
        found = []
        for start in range(0, len(subjects), CALL_SUBJECTS):
            some = subjects[start : start + CALL_SUBJECTS]
            reply = await self._scripts.run("doctor", int(fix), kind, *some)
            flat = [_text(value) for value in reply]
            found += [Violation(kind, *flat[i : i + 3]) for i in range(0, len(flat), 3)]
        return found

    async def recheck(self, given: Iterable[Violation], *, fix: bool = False) -> list[Violation]:
        """Those that still do not hold; `fix` repairs them."""
        given = list(given)
        kinds: dict[str, dict[str, None]] = {}
        for one in given:
            kinds.setdefault(one.kind, {})[one.subject] = None
        before = {(one.word, one.subject) for one in given}
        still = []
        for kind, subjects in kinds.items():
            found = await self.check(kind, list(subjects), fix=fix)
            still += [one for one in found if (one.word, one.subject) in before]
        return still

    async def check_counts(self, fix: Sequence[CountMismatch] = ()) -> list[CountMismatch]:
        """Where the kept counts are wrong; those of `fix` that are still the same are corrected."""
        places: list[str] = []
        async for keys in self._keys(("q", "later", "park", "suspects")):
            places += keys[: MAX_COUNTED_PLACES - len(places)]
        known = [f"{one.name} {one.counted - one.kept}" for one in fix]
        reply = await self._scripts.run(
            "census", int(bool(fix)), MAX_COUNTED_JOBS, len(known), *known, *places
        )
        rows = [_text(row).rsplit(" ", 2) for row in reply]
        return [CountMismatch(name, int(kept), int(counted)) for name, kept, counted in rows]

    async def with_stored_files(self) -> AsyncIterator[list[tuple[Record, list[Segment]]]]:
        """Batches of records with files or output in the file store, each with its segments."""
        async for _, ids in self._subjects(("job",)):
            found = await self.records(ids)
            yield [(record, segments) for record, segments in found if record.files or segments]

    async def records(self, ids: Sequence[str]) -> list[tuple[Record, list[Segment]]]:
        """The records of those jobs that exist, each with the segments of its output."""
        with translate_errors():
            pipe = self._redis.pipeline(transaction=False)
            for id in ids:
                pipe.hmget(f"{self._prefix}job:{id}", RECORD_FIELDS)
                pipe.xrange(f"{self._prefix}cold:{id}", count=MAX_SEGMENTS)
            rows = await pipe.execute()
        return [
            (record, [parse_segment(*entry) for entry in entries])
            for id, values, entries in zip(ids, rows[::2], rows[1::2], strict=True)
            if (record := parse(id, values)) is not None
        ]

    async def existing(self, ids: Sequence[str]) -> set[str]:
        """Those of these jobs that have a record."""
        found = await read_fields(self._scripts, ["state"], ids)
        return {id for id, (state,) in zip(ids, found, strict=True) if state}

    async def _subjects(self, kinds: Sequence[str] = ()) -> AsyncIterator[tuple[str, list[str]]]:
        """Batches of subjects with the kind that they are checked as, from keys of these kinds."""
        async for keys in self._keys(kinds):
            by_kind: dict[str, list[str]] = {}
            for key in keys:
                first, _, id = key.partition(":")
                if first in _KEYS:
                    subjects = by_kind.setdefault(_KEYS[first], [])
                    subjects.append(id if first == "job" else key)
            for kind, subjects in by_kind.items():
                yield kind, subjects
            for key in keys:
                first = key.partition(":")[0]
                if first in _MEMBERS:
                    async for members in self._members(key, ordered=first not in _SETS):
                        yield _MEMBERS[first], [f"{key} {member}" for member in members]

    async def _keys(self, kinds: Sequence[str] = ()) -> AsyncIterator[list[str]]:
        """Batches of keys without the prefix; some keys may come twice."""
        async for found in self._scan(partial(self._redis.scan, match=f"{self._prefix}*")):
            names = [_text(key)[len(self._prefix) :] for key in found]
            yield [name for name in names if not kinds or name.partition(":")[0] in kinds]

    async def _members(self, key: str, *, ordered: bool) -> AsyncIterator[list[str]]:
        scan = self._redis.zscan if ordered else self._redis.sscan
        async for found in self._scan(partial(scan, f"{self._prefix}{key}")):
            yield [_text(member[0] if ordered else member) for member in found]

    async def _scan(self, command: Callable[..., Awaitable[Any]]) -> AsyncIterator[list[Any]]:
        cursor = 0
        while True:
            with translate_errors():
                cursor, found = await command(cursor=cursor, count=SCAN_KEYS)
            if found:
                yield found
            if not cursor:
                return
            await asyncio.sleep(0)  # a scan whose replies are buffered must not hold the loop


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")
