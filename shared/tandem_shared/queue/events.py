"""The stream of events: one consumer group projects it into the ledger at its own pace.

An entry holds up to 500 transitions, one per line: id, state, stamp, attempt. A reader looks at the
records as they are when it reads them, so entries may be read late, twice and out of order. Entries
that no consumer holds any more are trimmed.
"""

from collections.abc import Awaitable, Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec
from redis import exceptions
from redis.asyncio import Redis

from tandem_shared.jobs.record import RECORD_FIELDS
from tandem_shared.jobs.states import FINAL
from tandem_shared.queue.scripts import Scripts, flatten, translate_errors

GROUP = "ledger"
READ_ENTRIES = 100  # per call
RECENT_BYTES = 1 << 20  # of events that are searched for the jobs that changed last
# What the ledger keeps of a record besides its payload; `state` is the first.
LEDGER_FIELDS = (*RECORD_FIELDS[:-1], "ck", "cl")

LedgerValues = list[str | None]  # the values of LEDGER_FIELDS, then the payload of a final job
_unpack = msgspec.msgpack.Decoder(list[str | bool]).decode  # False: the record lacks the field


class EventBatch(NamedTuple):
    """Entries that a consumer now holds, and the ids of the jobs in them, each once."""

    entries: list[str]
    jobs: list[str]


class Lag(NamedTuple):
    """What the ledger has not written yet: entries, and the age of the oldest in seconds."""

    entries: int
    seconds: float


class JobEvents:
    """The stream of one shard; every method raises Unavailable if Redis does not answer."""

    def __init__(self, redis: "Redis", prefix: str, scripts: Scripts) -> None:
        self._redis: Any = redis
        self._scripts, self._prefix = scripts, prefix
        self._key = f"{prefix}events"

    async def join(self, backlog: int) -> None:
        """Keeps the stream for a ledger; while `backlog` bytes wait for it, no job is accepted."""
        await self._scripts.run("join", backlog)

    async def read_new(self, consumer: str, *, block: float) -> EventBatch | None:
        """New entries, after at most `block` seconds; None if no ledger has joined this stream."""
        return await self._read(consumer, ">", max(1, int(block * 1000)))

    async def read_pending(self, consumer: str) -> EventBatch | None:
        """Entries that this consumer already holds: it failed on them, or the reply was lost."""
        return await self._read(consumer, "0", None)

    async def _read(self, consumer: str, after: str, block: int | None) -> EventBatch | None:
        streams = {self._key: after}
        command = self._redis.xreadgroup(GROUP, consumer, streams, READ_ENTRIES, block)
        found = await _or_none(command)
        if found is None:
            return None
        return _batch(chain.from_iterable(entries for _, entries in found))

    async def take_over(self, consumer: str, *, idle: float) -> EventBatch:
        """Takes the entries that another consumer has held for `idle` seconds without activity."""
        command = self._redis.xautoclaim(
            self._key, GROUP, consumer, int(idle * 1000), count=READ_ENTRIES
        )
        found = await _or_none(command)
        return _batch(found[1] if found else [])

    async def ledger_values(
        self, ids: Sequence[str], *, max_bytes: int, entry: str = ""
    ) -> list[LedgerValues | None]:
        """What the ledger keeps of these jobs; fewer than asked for once `max_bytes` are read.

        None: the job is gone or, if `entry` is the oldest entry that names these jobs, the ledger
        already has its end.
        """
        width = len(LEDGER_FIELDS)
        found = await self._scripts.run(
            "ledger_values", max_bytes, entry, width, *LEDGER_FIELDS, *ids
        )
        values: list[LedgerValues | None] = []
        for id, packed in zip(ids, found, strict=False):
            try:
                values.append(packed and [None if it is False else it for it in _unpack(packed)])
            except UnicodeDecodeError:
                values.append(await self._read_lossy(id))
        return values

    async def _read_lossy(self, id: str) -> LedgerValues | None:
        """The same of a record with values that are not UTF-8."""
        with translate_errors():
            found = await self._redis.hmget(f"{self._prefix}job:{id}", [*LEDGER_FIELDS, "payload"])
        *values, payload = [value and value.decode(errors="replace") for value in found]
        if values[0] is None:
            return None
        return [*values, payload if values[0] in FINAL else None]

    async def acknowledge(self, entries: Sequence[str], finals: Sequence[tuple[str, int]]) -> None:
        """The ledger has written these entries, and these final jobs: (id, stamp)."""
        jobs = flatten(finals)
        await self._scripts.run("acknowledge", len(entries), *entries, *jobs)

    async def lag(self) -> Lag | None:
        """How far the ledger is behind; None until one has joined."""
        with translate_errors():
            pipe = self._redis.pipeline(transaction=False)
            pipe.hget(f"{self._prefix}clock", "ledger")
            pipe.xlen(self._key)
            pipe.xrange(self._key, count=1)
            pipe.time()
            joined, entries, oldest, (seconds, micros) = await pipe.execute()
        if joined is None:
            return None
        if not oldest:
            return Lag(entries, 0.0)
        made = int(oldest[0][0].partition(b"-")[0]) / 1000
        return Lag(entries, round(max(0.0, seconds + micros / 1e6 - made), 3))

    async def recent_jobs(self, limit: int) -> list[str]:
        """Ids of the jobs that changed last, newest first; the ledger may not have them yet."""
        found = await self._scripts.run("recent_jobs", limit, RECENT_BYTES)
        return [id.decode() for id in found]


async def _or_none(command: Awaitable[Any]) -> Any:
    """The reply, or None if the stream has no group for the ledger."""
    try:
        with translate_errors():
            return await command
    except exceptions.ResponseError as error:
        if str(error).startswith("NOGROUP"):
            return None
        raise


def _batch(entries: Iterable[tuple[bytes | None, dict[bytes, bytes] | None]]) -> EventBatch:
    held: list[str] = []
    jobs: dict[str, None] = {}
    for entry, fields in entries:
        if entry is not None:  # XAUTOCLAIM before Redis 7 returns nil for a trimmed entry
            held.append(entry.decode())
        text = (fields or {}).get(b"e", b"").decode()  # a trimmed entry has no fields
        jobs.update(dict.fromkeys([line.partition(" ")[0] for line in text.splitlines()]))
    return EventBatch(held, list(jobs))
