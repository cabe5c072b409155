"""A shard whose clock only the test turns, and a snapshot of all that it holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from redis.asyncio import Redis

from tandem_shared import catalogue
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Record, Submission
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Claim, Claimed, Finish, Report, WorkerInfo
from tandem_shared.queue.queue import Queue
from tandem_shared.queue.scripts import MAX_CALL_BYTES
from tests.shared.queue.model.rollback import Copy, copy_keys, roll_back

# Replaces Redis TIME in the scripts: a hash that the test writes.
CLOCK = "redis.call('HMGET', KEYS[1] .. 'now', 's', 'us')"
NOON = 1_800_000_000 * 1_000_000  # µs; every test's clock starts here

# The HDEL lets it pass while Redis is full, see lua/lib/when_full.lua.
TURN = "redis.call('HDEL', KEYS[1], 'us') redis.call('HSET', KEYS[1], 's', ARGV[1], 'us', ARGV[2])"

DUMP = """
local out = {}
for _, key in ipairs(redis.call('KEYS', KEYS[1] .. '*')) do
  local type, value = redis.call('TYPE', key).ok, ''
  if type == 'hash' then
    value = redis.call('HGETALL', key)
  elseif type == 'zset' then
    value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif type == 'set' then
    value = redis.call('SMEMBERS', key)
  elseif type == 'list' then
    value = redis.call('LRANGE', key, 0, -1)
  elseif type == 'string' then
    value = redis.call('GET', key)
  elseif key == KEYS[1] .. 'events' then
    value = redis.call('XRANGE', key, ARGV[1], '+')
  end
  out[#out + 1] = { string.sub(key, #KEYS[1] + 1), redis.call('PTTL', key), value }
end
return cjson.encode(out)
"""


def job(
    task: str = "t", *, payload: bytes = b"{}", max_attempts: int = 3, **given: Any
) -> Submission:
    """A submission with defaults for all that a test leaves out."""
    options = JobOptions(
        timeout=30, retry={"max_attempts": max_attempts}, replay_of=given.pop("replay_of", None)
    )
    return Submission(
        **{"id": new_id(), "task": task, "payload": payload, "options": options, **given}
    )


def entry(
    name: str, version: int = 1, summary: str = "", **limits: Any
) -> catalogue.CatalogueEntry:
    """A task of a catalogue, with `concurrency` and `rate` if given."""
    defaults = {"timeout": 30, **limits}
    return catalogue.CatalogueEntry(
        name=name,
        version=version,
        summary=summary,
        payload_schema={},
        result_schema={},
        defaults=defaults,
    )


@dataclass(frozen=True)
class Snapshot:
    """All keys under a shard's prefix, named without it."""

    ttl: dict[str, int]  # ms, -1 without
    jobs: dict[str, dict[str, str]]
    zsets: dict[str, dict[str, float]]
    values: dict[str, Any]  # of all other keys
    counts: dict[str, int]  # without zeros
    events: list[tuple[str, str]]  # (entry id, lines)

    def place(self, id: str) -> list[str]:
        """The places that a job is in."""
        return [key for key, members in self.zsets.items() if is_place(key) and id in members]


def is_place(key: str) -> bool:
    """Whether the key is a place of jobs."""
    return key == "leases" or key.startswith(("q:", "later:", "park:", "suspects:"))


@dataclass
class Worker:
    """A worker as the queue sees it; `held` are the jobs that it claimed."""

    shard: "Shard"
    id: str
    tasks: Mapping[str, int]
    queues: Sequence[str]
    limits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    calls: int = 0
    held: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return catalogue.digest([entry(name, version) for name, version in self.tasks.items()])

    async def register(self) -> "Worker":
        info = WorkerInfo(
            id=self.id,
            host="host",
            pid=7,
            queues=tuple(self.queues),
            concurrency=10,
            version="1",
            started_at=1.5,
        )
        entries = [
            entry(name, version, **self.limits.get(name, {}))
            for name, version in self.tasks.items()
        ]
        await self.shard.queue.register(info, entries)
        return self

    async def call(
        self,
        *,
        slots: int = 10,
        number: int | None = None,
        max_bytes: int = MAX_CALL_BYTES,
        **given: int,
    ) -> Claim:
        """Claims jobs, which are held from now on."""
        if number is None:
            self.calls += 1
        claim = await self.shard.queue.claim(
            self.id,
            number or self.calls,
            slots=slots,
            tasks=self.digest,
            queues=self.queues,
            max_bytes=max_bytes,
            running=len(self.held),
            **given,
        )
        self.held |= {one.id: one.token for one in claim.jobs}
        return claim

    async def claim(self, slots: int = 10) -> list[Claimed]:
        return (await self.call(slots=slots)).jobs

    async def take(self) -> Claimed:
        """Claims the only job."""
        (claimed,) = await self.claim()
        return claimed

    async def beat(self) -> tuple[bool, list[str], list[str]]:
        """Whether Redis knows the worker, and the ids of jobs that should stop."""
        held = list(self.held.items())
        known, lost, cancelled = await self.shard.queue.beat(self.id, self.digest, held)
        assert {*lost, *cancelled} <= set(held)
        return known, [one.id for one in lost], [one.id for one in cancelled]

    async def end(
        self, claimed: Claimed, to: State = State.SUCCEEDED, outcome: Any = None, **given: Any
    ) -> str:
        """Ends an attempt or hands the job back; returns the queue's answer."""
        outcome = outcome or {State.QUEUED: "released", State.RETRYING: "failed"}.get(to, to.value)
        self.held.pop(claimed.id, None)
        return (
            await self.shard.queue.finish([Finish(claimed.id, claimed.token, to, outcome, **given)])
        )[0]

    async def end_as(self, claimed: Claimed, how: str) -> None:
        """Ends the attempt of its only job in the state `how`, or loses it ('lost')."""
        if how == "lost":
            await self.shard.silence()
        else:
            await self.end(claimed, State(how), body=b"{}", delay=60)

    async def lose(self, *ids: str) -> None:
        """Claims these jobs and falls silent: their leases end and are settled."""
        await self.claim()
        assert set(ids) <= set(self.held)
        self.held.clear()
        await self.shard.silence()


class Shard:
    """A queue whose clock stands still until `turn`."""

    def __init__(
        self, redis: "Redis", *, letter: str = "a", lease: float = 10.0, **given: Any
    ) -> None:
        self.redis: Any = redis  # redis-py shares annotations between sync and async methods
        self.queue = Queue(redis, shard=letter, lease=lease, clock=CLOCK, **given)
        self.lease = lease
        self.us = NOON
        self.lived = 0  # µs that have really passed, whatever the clock shows
        self._workers = 0

    @property
    def ms(self) -> int:
        return self.us // 1000

    async def turn(self, seconds: float) -> None:
        """Turns the clock forwards or back, without ticks."""
        self.us += round(seconds * 1_000_000)
        self.lived += max(0, round(seconds * 1_000_000))
        now = (self.us // 1_000_000, self.us % 1_000_000)
        await self.redis.eval(TURN, 1, f"{self.queue.prefix}now", *now)

    async def wait(self, seconds: float) -> int:
        """Lets time pass with a tick per second; returns the number of leases that ended."""
        settled = 0
        while seconds > 0:
            await self.turn(min(seconds, 1))
            settled += await self.queue.tick()
            seconds -= 1
        return settled

    async def silence(self) -> None:
        """Lets every lease end and be settled."""
        await self.wait(self.lease + 1)

    async def worker(
        self,
        tasks: Mapping[str, int] | None = None,
        queues: Sequence[str] = ("default",),
        **limits: Any,
    ) -> Worker:
        """A newly registered worker; by default it knows the task `t`, with these limits."""
        self._workers += 1
        return await Worker(
            self, f"w{self._workers}", tasks or {"t": 1}, queues, {"t": limits}
        ).register()

    async def submit(self, *jobs: Submission) -> list[str]:
        answers = await self.queue.submit_many(jobs)
        return [answer.id for answer in answers if not isinstance(answer, Exception)]

    async def add(self, **given: Any) -> str:
        """Submits one job and returns its id."""
        return (await self.queue.submit(job(**given))).id

    async def report(self, *reports: Report, limit: int = 1 << 20, **bounds: int) -> list[str]:
        """Writes reports of running jobs; returns the words that the queue answers."""
        answers = await self.queue.report(reports, limit=limit, **bounds)
        return [answer.word for answer in answers]

    async def get(self, id: str) -> Record:
        record = await self.queue.get(id)
        assert record is not None
        return record

    async def state(self, id: str) -> State:
        return (await self.get(id)).state

    async def place(self, id: str) -> list[str]:
        return (await self.snapshot()).place(id)

    async def events(self, id: str) -> list[str]:
        """The states of a job that were published, in order."""
        lines = [
            line.split() for _, text in (await self.snapshot()).events for line in text.splitlines()
        ]
        return [words[1] for words in lines if words[0] == id]

    async def field(self, id: str, name: str) -> str | None:
        return (await self.snapshot()).jobs[id].get(name)

    async def copy(self) -> Copy:
        """All that the shard holds now, for `roll_back`."""
        return await copy_keys(self.redis, self.queue.prefix)

    async def roll_back(self, copy: Copy) -> None:
        """Redis comes back as it was at the time of the copy, while its clock went on."""
        await roll_back(self.redis, self.queue.prefix, copy)

    async def snapshot(self, since: str = "-") -> Snapshot:
        """All that the shard holds; events from the entry `since` on."""
        rows = msgspec.json.decode(await self.redis.eval(DUMP, 1, self.queue.prefix, since))
        ttl, jobs, zsets, values, events = {}, {}, {}, {}, []
        for key, left, value in rows:
            ttl[key] = left
            if key.startswith("job:"):
                jobs[key[4:]] = pairs(value)
            elif key == "events":
                events = [(id, fields[1]) for id, fields in value]
            elif is_place(key) or key in ("expiries", "workers", "gates", "agenda"):
                zsets[key] = {id: float(score) for id, score in pairs(value).items()}
            else:
                values[key] = value
        counts = {
            name: int(value)
            for name, value in pairs(values.get("counts", [])).items()
            if value != "0"
        }
        return Snapshot(ttl, jobs, zsets, values, counts, events)


def pairs(flat: Sequence[Any]) -> dict[str, Any]:
    """The dict of a flat list of names and values."""
    return dict(zip(flat[::2], flat[1::2], strict=True))
