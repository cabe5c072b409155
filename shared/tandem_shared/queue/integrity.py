"""Whether what must hold in a shard does hold, looked at in portions while it lives: see doctor.lua and census.lua.

Keys are listed by SCAN, and each is judged by a script of its own moment, so nothing is blocked for
long. What does not hold is told as `Fault`; whoever mends it has it judged again in the same
moment.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis

from tandem_shared.jobs.record import FIELDS, Record, parse
from tandem_shared.queue.messages import Segment
from tandem_shared.queue.scripts import Arg, Scripts, reach

PORTION = 200  # subjects that are judged at once
LISTED = 500  # keys or members that are listed at once, about
COUNTED = 5000  # jobs that are looked at for a count, at once; of more, only the number
MOST = 5000  # faults that are kept
KNOWN = 2000  # places whose names are given to the count
CALLED = 4 << 10  # keys that are looked for at once

# The first part of a key, and by what its key and its members are judged.
_KEYS = {
    "job": "job", "park": "park", "idem": "kin", "out": "kin", "cold": "kin", "steps": "kin", "worker": "worker",
    "tasks": "worker", "lock": "lock", "waits": "lock",
}  # fmt: skip
_MEMBERS = {
    "q": "entry", "park": "entry", "later": "entry", "leases": "entry", "suspects": "entry", "expiries": "entry",
    "key": "holder", "slots": "holder", "waits": "wait",
}  # fmt: skip
_TIMES = ("leases", "later", "expiries", "gates")


class Fault(NamedTuple):
    """Something that does not hold: a word for it, whom it is about, and what was seen. `kind` judges it again."""

    kind: str
    word: str
    subject: str
    seen: str = ""


class Census(NamedTuple):
    """A difference between what is counted and what is there."""

    name: str  # '<queue> <state>'; the queue is '*' where there are too many jobs to look at
    kept: int
    counted: int


class Checkup:
    """The look at one shard; every method raises Unavailable when Redis does not answer."""

    def __init__(self, redis: "Redis", prefix: str, scripts: Scripts) -> None:
        self._redis: Any = redis
        self._prefix, self._scripts = prefix, scripts
        self.jobs = 0  # records that the last look at all has met, about

    async def everything(self) -> list[Fault]:
        """Every fault that there seems to be, at most MOST; to be looked at again."""
        self.jobs = 0
        found: dict[Fault, None] = {}
        async for kind, subjects in self._subjects():
            if kind == "job":
                self.jobs += len(subjects)
            for fault in await self.judge(kind, subjects):
                found[fault] = None
            if len(found) >= MOST:
                break
        for fault in await self.judge("time", _TIMES):
            found[fault] = None
        return list(found)[:MOST]

    async def judge(self, kind: str, subjects: Sequence[str], *, mend: bool = False) -> list[Fault]:
        """What does not hold for these at this moment."""
        faults = []
        for start in range(0, len(subjects), PORTION):
            args: list[Arg] = [int(mend), kind, *subjects[start : start + PORTION]]
            flat = [_text(value) for value in await self._scripts.run("doctor", args)]
            faults += [Fault(kind, *flat[i : i + 3]) for i in range(0, len(flat), 3)]
        return faults

    async def again(self, faults: Iterable[Fault], *, mend: bool = False) -> list[Fault]:
        """Those that are still there, and mends them if asked to."""
        faults = list(faults)
        # A key that nobody holds is free only if nobody has been called for it either, which takes
        # a look at all.
        keys = [fault for fault in faults if fault.word == "key-free"]
        free = await self._uncalled(keys) if keys else []
        kinds: dict[str, dict[str, None]] = {}
        for fault in faults:
            if fault.word != "key-free" or fault in free:
                kinds.setdefault(fault.kind, {})[fault.subject] = None
        before = {(fault.word, fault.subject) for fault in faults}
        still = []
        for kind, subjects in kinds.items():
            found = await self.judge(kind, list(subjects), mend=mend)
            still += [fault for fault in found if (fault.word, fault.subject) in before]
        return still

    async def _uncalled(self, keys: Sequence[Fault]) -> list[Fault]:
        now = {one.subject: one for one in await self.judge("park", [one.subject for one in keys])}
        called: set[str] = set()
        async for kind, subjects in self._subjects(("job",)):
            for fault in await self.judge("called" if kind == "job" else kind, subjects):
                if fault.subject in now and len(called) < CALLED:
                    called.add(fault.subject)
        after = {one.subject: one for one in await self.judge("park", list(now))}
        # Whoever was called meanwhile has left the place.
        return [
            one
            for one in keys
            if one.subject not in called and one == now.get(one.subject) == after.get(one.subject)
        ]

    async def census(self, mend: Sequence[Census] = ()) -> list[Census]:
        """Where the counts are not what is there; `mend` those that still are these."""
        places: list[str] = []
        async for keys in self._keys(("q", "park")):
            places += keys[: KNOWN - len(places)]
        told = [f"{one.name} {one.counted - one.kept}" for one in mend]
        args: list[Arg] = [int(bool(mend)), COUNTED, len(told), *told, *places]
        rows = [_text(row).rsplit(" ", 2) for row in await self._scripts.run("census", args)]
        return [Census(name, int(kept), int(counted)) for name, kept, counted in rows]

    async def published(self) -> AsyncIterator[list[tuple[Record, list[Segment]]]]:
        """Records that have files or output in the file store, in portions, with the latter's segments."""
        async for kind, ids in self._subjects(("job",)):
            if kind == "job":
                records = await self.records(ids)
                yield [
                    (one, segments)
                    for one, segments in records
                    if one.files is not None or segments
                ]

    async def records(self, ids: Sequence[str]) -> list[tuple[Record, list[Segment]]]:
        """Those of these jobs that there are, each with the index of its output in the file store."""

        async def call() -> list[Any]:
            pipe = self._redis.pipeline(transaction=False)
            for id in ids:
                pipe.hmget(f"{self._prefix}job:{id}", FIELDS)
                pipe.xrange(f"{self._prefix}cold:{id}", count=1000)
            return await pipe.execute()  # type: ignore[no-any-return] # redis-py's

        rows = await reach(call)
        found = []
        for index, id in enumerate(ids):
            record = parse(id, rows[2 * index])
            if record is not None:
                found.append(
                    (record, [_segment(last, fields) for last, fields in rows[2 * index + 1]])
                )
        return found

    async def there(self, ids: Sequence[str]) -> set[str]:
        """Those of these jobs that have a record."""

        async def call() -> list[int]:
            pipe = self._redis.pipeline(transaction=False)
            for id in ids:
                pipe.exists(f"{self._prefix}job:{id}")
            return await pipe.execute()  # type: ignore[no-any-return] # redis-py's

        return {id for id, one in zip(ids, await reach(call), strict=True) if one}

    async def now(self) -> float:
        """What Redis' clock shows, seconds since the epoch."""
        seconds, micros = await reach(self._redis.time)
        return float(seconds + micros / 1e6)

    # -------------------------------------------------------------------------------------- listing

    async def _keys(self, kinds: Sequence[str] = ()) -> AsyncIterator[list[str]]:
        """The keys without the prefix, in portions; some may come twice."""
        cursor = 0
        while True:
            cursor, keys = await self._scan(cursor)
            names = [_text(key)[len(self._prefix) :] for key in keys]
            found = [name for name in names if not kinds or name.partition(":")[0] in kinds]
            if found:
                yield found
            if not cursor:
                return
            await asyncio.sleep(0)

    async def _scan(self, cursor: int) -> tuple[int, list[bytes]]:
        return await reach(lambda: self._redis.scan(cursor, match=f"{self._prefix}*", count=LISTED))  # type: ignore[no-any-return] # redis-py's

    async def _subjects(self, kinds: Sequence[str] = ()) -> AsyncIterator[tuple[str, list[str]]]:
        async for keys in self._keys(kinds):
            by_kind: dict[str, list[str]] = {}
            for key in keys:
                set = key.partition(":")[0]
                if set in _KEYS:
                    subject = key.partition(":")[2] if set == "job" else key
                    by_kind.setdefault(_KEYS[set], []).append(subject)
            for kind, subjects in by_kind.items():
                yield kind, subjects
            for key in keys:
                member = _MEMBERS.get(key.partition(":")[0])
                if member is not None:
                    async for members in self._members(key):
                        yield member, [f"{key} {one}" for one in members]

    async def _members(self, key: str) -> AsyncIterator[list[str]]:
        name, cursor = f"{self._prefix}{key}", 0
        ordered = key.partition(":")[0] not in ("key", "slots")
        while True:
            cursor, found = await self._scan_members(name, cursor, ordered=ordered)
            if found:
                yield [_text(one[0] if ordered else one) for one in found]
            if not cursor:
                return

    async def _scan_members(
        self, name: str, cursor: int, *, ordered: bool
    ) -> tuple[int, list[Any]]:
        scan = self._redis.zscan if ordered else self._redis.sscan
        return await reach(lambda: scan(name, cursor, count=LISTED))  # type: ignore[no-any-return] # redis-py's


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def _segment(last: bytes, fields: Mapping[bytes, bytes]) -> Segment:
    return Segment(int(fields[b"f"]), int(last.partition(b"-")[0]), int(fields[b"s"]))
