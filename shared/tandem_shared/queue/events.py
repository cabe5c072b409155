"""The events as the ledger reads them: a stream with one consumer group, read at the readers' own pace.

An entry holds up to 500 transitions, a line each: id, state, stamp, attempt. Whoever reads it looks
at the records as they then are, so an entry may be read late, twice and out of order. What no
consumer holds any more is cut off.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from redis import exceptions
from redis.asyncio import Redis

from tandem_shared.jobs.record import FIELDS
from tandem_shared.jobs.states import FINAL
from tandem_shared.queue.scripts import Arg, Scripts, reach

GROUP = "ledger"
READ = 100  # entries at once
# What the ledger keeps of a record besides the fields that `parse` reads; the payload comes last.
KEPT = (*FIELDS, "ver", "ck", "cl")  # `state` is the first

Facts = list[str | None]  # the values of KEPT, and the payload of a final job
_unpack = msgspec.msgpack.Decoder(list[str | bool]).decode  # False: no such field


class Taken(NamedTuple):
    """Entries that are ours now, and the jobs that they tell of, each once."""

    entries: list[str]
    jobs: list[str]


class Lag(NamedTuple):
    """What the ledger has not written yet: entries of the stream, and seconds since the oldest was made."""

    entries: int
    seconds: float


class Events:
    """The stream of one shard; every method raises Unavailable when Redis does not answer."""

    def __init__(self, redis: "Redis", prefix: str, scripts: Scripts) -> None:
        self._redis, self._scripts, self._prefix = redis, scripts, prefix
        self._key, self._clock = f"{prefix}events", f"{prefix}clock"

    async def join(self, backlog: int) -> None:
        """Has the stream kept for a ledger; while `backlog` entries wait for it, no job is accepted."""
        await self._scripts.run("join", [backlog])

    async def take(self, consumer: str, *, block: float) -> Taken | None:
        """New entries, after `block` seconds at most; None: nobody has joined, or the stream is a new one."""
        return await self._read(consumer, ">", max(1, int(block * 1000)))

    async def held(self, consumer: str) -> Taken | None:
        """Entries that are this consumer's since before: their reader failed, or the answer was lost."""
        return await self._read(consumer, "0", None)

    async def _read(self, consumer: str, after: str, block: int | None) -> Taken | None:
        async def call() -> Any:
            try:
                return await self._redis.xreadgroup(
                    GROUP, consumer, {self._key: after}, count=READ, block=block
                )
            except exceptions.ResponseError as error:
                if str(error).startswith("NOGROUP"):
                    return None
                raise

        found = await reach(call)
        return (
            None if found is None else _taken([entry for _, entries in found for entry in entries])
        )

    async def inherit(self, consumer: str, *, idle: float) -> Taken:
        """Entries that another consumer has held for `idle` seconds without a sign of life; they are ours now."""

        async def call() -> Any:
            try:
                return await self._redis.xautoclaim(
                    self._key, GROUP, consumer, int(idle * 1000), count=READ
                )
            except exceptions.ResponseError as error:
                if str(error).startswith("NOGROUP"):
                    return [b"0-0", []]
                raise

        return _taken((await reach(call))[1])

    async def facts(self, ids: Sequence[str], *, room: int, entry: str = "") -> list[Facts | None]:
        """What is to be kept of these jobs, None of one that is gone; fewer than asked once `room` bytes are read.

        `entry` is the oldest one that tells of them: None also stands for what the ledger has to
        the end already.
        """
        found = await self._scripts.run("facts", [room, entry, len(KEPT), *KEPT, *ids])
        facts: list[Facts | None] = []
        for id, packed in zip(ids, found, strict=False):
            try:
                facts.append(
                    packed and [None if value is False else value for value in _unpack(packed)]
                )
            except UnicodeDecodeError:
                facts.append(await self._legible(id))
        return facts

    async def _legible(self, id: str) -> Facts | None:
        """The same of a record with bytes in it that are no text."""
        values: Any = await reach(
            lambda: self._redis.hmget(f"{self._prefix}job:{id}", [*KEPT, "payload"])
        )
        *facts, payload = [value and value.decode(errors="replace") for value in values]
        return [*facts, payload if facts[0] in FINAL else None] if facts[0] else None

    async def projected(self, entries: Sequence[str], finals: Sequence[tuple[str, int]]) -> None:
        """The ledger has all that these entries told, and these jobs as they ended: (id, stamp)."""
        args: list[Arg] = [len(entries), *entries]
        for id, stamp in finals:
            args += [id, stamp]
        await self._scripts.run("projected", args)

    async def lag(self) -> Lag | None:
        """How far the ledger is behind; None as long as none has ever joined."""

        async def call() -> Any:
            pipe = self._redis.pipeline(transaction=False)
            pipe.hget(self._clock, "ledger")
            pipe.xlen(self._key)
            pipe.xrange(self._key, count=1)
            pipe.time()
            return await pipe.execute()

        joined, entries, oldest, (seconds, micros) = await reach(call)
        if joined is None:
            return None
        made = int(oldest[0][0].partition(b"-")[0]) / 1000 if oldest else 0.0
        return Lag(entries, round(max(0.0, seconds + micros / 1e6 - made), 3) if oldest else 0.0)

    async def recent(self, limit: int) -> list[str]:
        """The jobs that changed last and that the ledger may not have yet, the newest change first."""
        rows: Any = await reach(lambda: self._redis.xrevrange(self._key, count=limit))
        jobs: dict[str, None] = {}
        for _, fields in rows:
            for line in reversed(fields[b"e"].split(b"\n")):
                jobs[line.partition(b" ")[0].decode()] = None
            if len(jobs) >= limit:
                break
        return list(jobs)[:limit]


def _taken(entries: Sequence[tuple[bytes, dict[bytes, bytes] | None]]) -> Taken:
    jobs: dict[str, None] = {}
    for _, fields in entries:
        text = (
            (fields or {}).get(b"e", b"").decode()
        )  # no fields: cut off, although somebody held it
        jobs.update(dict.fromkeys([line.partition(" ")[0] for line in text.splitlines()]))
    return Taken([id.decode() for id, _ in entries if id is not None], list(jobs))
