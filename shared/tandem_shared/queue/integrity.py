"""Compares all that a shard has with what its records demand, while it runs.

doctor.lua and census.lua have the rules. Keys are listed by SCAN and checked in small calls, so
nothing is blocked for long; fixing a Violation checks it again in the same call.
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
MAX_COUNTED_PLACES = 10_000  # with more, counts are not checked
MAX_SEGMENTS = 1000  # read per job

_PLACES = ("q", "later", "suspects", "park")
# By the first part of a key: the command that scans its members, which are checked one by one.
_SCANS = {
    **dict.fromkeys((*_PLACES, "leases", "expiries", "waits"), "zscan"),
    "slots": "sscan",
}


class Violation(NamedTuple):
    """What is not as it should be: its word, its subject, what was seen; `kind` rechecks it."""

    kind: str  # what the subject is: 'job', 'key', 'entry' or 'count'
    word: str
    subject: str
    seen: str


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
            found.update(dict.fromkeys(await self._check(kind, subjects)))
            if len(found) >= MAX_VIOLATIONS:
                break
        return [*found, *await self._check_counts()][:MAX_VIOLATIONS]

    async def recheck(self, given: Iterable[Violation], *, fix: bool = False) -> list[Violation]:
        """Those that are still the same; `fix` repairs them."""
        before = dict.fromkeys(given)
        found = []
        for kind in ("job", "key", "entry"):
            subjects = dict.fromkeys(one.subject for one in before if one.kind == kind)
            found += await self._check(kind, list(subjects), fix=fix)
        counts = [one for one in before if one.kind == "count"]
        found += await self._check_counts(counts if fix else ()) if counts else []
        return [one for one in dict.fromkeys(found) if one in before]

    async def _check(
        self, kind: str, subjects: Sequence[str], *, fix: bool = False
    ) -> list[Violation]:
        found = []
        for start in range(0, len(subjects), CALL_SUBJECTS):
            some = subjects[start : start + CALL_SUBJECTS]
            reply = map(_text, await self._scripts.run("doctor", int(fix), kind, *some))
            found += [Violation(kind, *one) for one in zip(reply, reply, reply, strict=True)]
        return found

    async def _check_counts(self, fix: Sequence[Violation] = ()) -> list[Violation]:
        places = [key async for keys in self._keys(_PLACES) for key in keys]
        if len(places) > MAX_COUNTED_PLACES:
            return []
        known = [f"{one.subject} {one.seen}" for one in fix]
        reply = await self._scripts.run(
            "census", int(bool(fix)), MAX_COUNTED_JOBS, len(known), *known, *places
        )
        flat = map(_text, reply)
        return [Violation("count", "counts-differ", *one) for one in zip(flat, flat, strict=True)]

    async def with_stored_files(self) -> AsyncIterator[list[tuple[Record, list[Segment]]]]:
        """Batches of records with files or output in the file store, each with its segments."""
        async for keys in self._keys(("job",)):
            found = await self.records([key[4:] for key in keys])
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

    async def _subjects(self) -> AsyncIterator[tuple[str, list[str]]]:
        """Batches of subjects with their kind."""
        async for keys in self._keys():
            yield "job", [key[4:] for key in keys if key.startswith("job:")]
            yield "key", [key for key in keys if not key.startswith("job:")]
            for key in keys:
                command = _SCANS.get(key.partition(":")[0])
                if command:
                    async for members in self._members(key, getattr(self._redis, command)):
                        yield "entry", [f"{key} {member}" for member in members]

    async def _keys(self, kinds: Sequence[str] = ()) -> AsyncIterator[list[str]]:
        """Batches of keys without the prefix; some keys may come twice."""
        async for found in self._scan(partial(self._redis.scan, match=f"{self._prefix}*")):
            names = [_text(key)[len(self._prefix) :] for key in found]
            yield [name for name in names if not kinds or name.partition(":")[0] in kinds]

    async def _members(
        self, key: str, scan: Callable[..., Awaitable[Any]]
    ) -> AsyncIterator[list[str]]:
        async for found in self._scan(partial(scan, f"{self._prefix}{key}")):
            yield [_text(one[0] if isinstance(one, tuple) else one) for one in found]

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
