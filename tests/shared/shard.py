"""A shard of the queue whose clock only the test turns, what stands in it, and the laws that always hold for that."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from redis.asyncio import Redis

from shared import catalogue
from shared.jobs import FINAL, Options, Record, State, Submission, new_id
from shared.queue import ROOM, Claim, Claimed, Finish, Queue, WorkerInfo

# What the scripts take for Redis TIME: a hash that the test writes.
CLOCK = "redis.call('HMGET', KEYS[1] .. 'now', 's', 'us')"
NOON = 1_800_000_000 * 1_000_000  # µs; where every test's clock starts

# Also while Redis has no memory: it refuses no write that comes after one that needs none.
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


def job(task: str = "t", *, payload: bytes = b"{}", max_attempts: int = 3, **given: Any) -> Submission:
    """A submission with what the test is not about filled in."""
    options = Options(timeout=30, retry={"max_attempts": max_attempts}, replay_of=given.pop("replay_of", None))
    return Submission(**{"id": new_id(), "task": task, "payload": payload, "options": options, **given})


def entry(name: str, version: int = 1, summary: str = "", **limits: Any) -> catalogue.Entry:
    """A task of a catalogue, with `concurrency` and `rate` if given."""
    defaults = {"timeout": 30, **limits}
    return catalogue.Entry(
        name=name, version=version, summary=summary, payload_schema={}, result_schema={}, defaults=defaults
    )


@dataclass(frozen=True)
class Snapshot:
    """All that stands under a shard's prefix, keys without it."""

    ttl: dict[str, int]  # ms, -1: none
    jobs: dict[str, dict[str, str]]
    zsets: dict[str, dict[str, float]]
    values: dict[str, Any]  # of all other keys
    counts: dict[str, int]  # the ones that are not 0
    events: list[tuple[str, str]]  # (entry id, lines)

    def place(self, id: str) -> list[str]:
        """Where a job stands."""
        return [key for key, members in self.zsets.items() if _is_place(key) and id in members]


def _is_place(key: str) -> bool:
    return key in ("later", "leases", "suspects") or key.startswith(("q:", "park:"))


@dataclass
class Worker:
    """A worker as the queue sees it, holding what it claimed."""

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
            id=self.id, host="host", pid=7, queues=tuple(self.queues), concurrency=10, version="1", started_at=1.5
        )
        entries = [entry(name, version, **self.limits.get(name, {})) for name, version in self.tasks.items()]
        await self.shard.queue.register(info, entries)
        return self

    async def call(self, *, slots: int = 10, number: int | None = None, room: int = ROOM) -> Claim:
        """A claim; its jobs are held from now on."""
        if number is None:
            self.calls += 1
        claim = await self.shard.queue.claim(
            self.id, number or self.calls, slots=slots, tasks=self.digest, queues=self.queues, room=room
        )
        self.held |= {one.id: one.token for one in claim.jobs}
        return claim

    async def claim(self, slots: int = 10) -> list[Claimed]:
        return (await self.call(slots=slots)).jobs

    async def take(self) -> Claimed:
        """The one job that there is to claim."""
        (claimed,) = await self.claim()
        return claimed

    async def beat(self) -> tuple[bool, list[str], list[str]]:
        return await self.shard.queue.beat(self.id, self.digest, list(self.held.items()))

    async def end(self, claimed: Claimed, to: State = State.SUCCEEDED, outcome: Any = None, **given: Any) -> str:
        """Finishes, or hands back; what the queue answers."""
        outcome = outcome or {State.QUEUED: "released", State.RETRYING: "failed"}.get(to, to.value)
        self.held.pop(claimed.id, None)
        return (await self.shard.queue.finish([Finish(claimed.id, claimed.token, to, outcome, **given)]))[0]

    async def leaves(self, claimed: Claimed, how: str) -> None:
        """The run of its one job ends in the state `how`, or `lost`."""
        if how == "lost":
            await self.shard.silence()
        else:
            await self.end(claimed, State(how), body=b"{}", delay=60)

    async def loses(self, *ids: str) -> None:
        """Claims these jobs until it has them and never says a word again: their leases end and are settled."""
        await self.claim()
        assert set(ids) <= set(self.held)
        self.held.clear()
        await self.shard.silence()


class Shard:
    """A queue whose clock stands still until `turn`."""

    def __init__(self, redis: "Redis", *, letter: str = "a", lease: float = 10.0, **given: Any) -> None:
        self.redis: Any = redis  # redis-py gives one annotation to its sync and its async methods
        self.queue = Queue(redis, shard=letter, lease=lease, clock=CLOCK, **given)
        self.lease = lease
        self.us = NOON
        self.lived = 0  # µs that have passed, whatever the clock shows
        self._workers = 0

    @property
    def ms(self) -> int:
        return self.us // 1000

    async def turn(self, seconds: float) -> None:
        """Turns the clock, forwards or back, while nobody does anything."""
        self.us += round(seconds * 1_000_000)
        self.lived += max(0, round(seconds * 1_000_000))
        now = (self.us // 1_000_000, self.us % 1_000_000)
        await self.redis.eval(TURN, 1, f"{self.queue.prefix}now", *now)

    async def wait(self, seconds: float) -> int:
        """Lets time pass as it does while Redis is well: with a tick at least once a second. How many leases ended."""
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
        self, tasks: Mapping[str, int] | None = None, queues: Sequence[str] = ("default",), **limits: Any
    ) -> Worker:
        """A registered worker of its own; by default it knows the task `t`, with these limits."""
        self._workers += 1
        return await Worker(self, f"w{self._workers}", tasks or {"t": 1}, queues, {"t": limits}).register()

    async def submit(self, *jobs: Submission) -> list[str]:
        answers = await self.queue.submit_many(jobs)
        return [answer.id for answer in answers if not isinstance(answer, Exception)]

    async def add(self, **given: Any) -> str:
        """Submits one job; its id."""
        return (await self.queue.submit(job(**given))).id

    async def get(self, id: str) -> Record:
        record = await self.queue.get(id)
        assert record is not None
        return record

    async def state(self, id: str) -> State:
        return (await self.get(id)).state

    async def place(self, id: str) -> list[str]:
        return (await self.snapshot()).place(id)

    async def events(self, id: str) -> list[str]:
        """The states that were told of a job."""
        lines = [line.split() for _, text in (await self.snapshot()).events for line in text.splitlines()]
        return [words[1] for words in lines if words[0] == id]

    async def field(self, id: str, name: str) -> str | None:
        return (await self.snapshot()).jobs[id].get(name)

    async def snapshot(self, since: str = "-") -> Snapshot:
        """What stands there; events from the entry `since` on."""
        rows = msgspec.json.decode(await self.redis.eval(DUMP, 1, self.queue.prefix, since))
        ttl, jobs, zsets, values, events = {}, {}, {}, {}, []
        for key, left, value in rows:
            ttl[key] = left
            if key.startswith("job:"):
                jobs[key[4:]] = _pairs(value)
            elif key == "events":
                events = [(id, fields[1]) for id, fields in value]
            elif _is_place(key) or key in ("expiries", "workers", "gates"):
                zsets[key] = {id: float(score) for id, score in _pairs(value).items()}
            else:
                values[key] = value
        counts = {name: int(value) for name, value in _pairs(values.get("counts", [])).items() if value != "0"}
        return Snapshot(ttl, jobs, zsets, values, counts, events)


def _pairs(flat: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


# ------------------------------------------------------------------------------------------------------------- the laws


def home(record: Mapping[str, str]) -> list[str]:
    """The one place where a record stands, or none if it is final."""
    state = State(record["state"])
    if state in FINAL:
        return []
    if state is State.RUNNING:
        return ["leases"]
    if state in (State.SCHEDULED, State.RETRYING):
        return ["later"]
    if state is State.WAITING:
        return [f"park:{record['park']}"]
    return ["suspects"] if int(record.get("losses", 0)) >= 2 else [f"q:{record['queue']}:{record['prio']}"]


def broken(shard: Snapshot) -> list[str]:
    """Every law that does not hold, with whom it does not hold for."""
    found = [*_places(shard), *_fields(shard), *_numbers(shard), *_holders(shard), *_limits(shard), *_locks(shard)]
    return [*found, *_lifetimes(shard)]


# The scripts tell by the number of fields whether a record has any besides these.
SUBMITTED = frozenset("state v attempt queue prio due tenant max f task ver opts payload at".split())
SUCCEEDED = SUBMITTED | set("began token attempts result ended".split())


def _fields(shard: Snapshot) -> Iterable[str]:
    for id, record in shard.jobs.items():
        begun = {"began", "token"} if {"began", "token"} & record.keys() or record["state"] == "running" else set()
        if missing := (SUCCEEDED if record["state"] == "succeeded" else SUBMITTED | begun) - record.keys():
            yield f"{id} is {record['state']} and has no {sorted(missing)}"


def _places(shard: Snapshot) -> Iterable[str]:
    for id, record in shard.jobs.items():
        places = shard.place(id)
        if places != home(record):
            yield f"{id} is {record['state']} and stands in {places}, not in {home(record)}"
        elif places and places != ["leases"] and shard.zsets[places[0]][id] != int(record["due"]):
            yield f"{id} does not stand at its due time"
        waits = State(record["state"]) not in {*FINAL, State.RUNNING} and "exp" in record
        if waits != (id in shard.zsets.get("expiries", {})):
            yield f"{id} {'may expire and is not' if waits else 'cannot expire and is'} among the expiries"
    for key, members in shard.zsets.items():
        if _is_place(key) or key == "expiries":
            yield from (f"{id} stands in {key} without a record" for id in members if id not in shard.jobs)
        if key.startswith(("park:task:", "park:format:")) and key[5:] not in shard.values.get("parked", []):
            yield f"nobody would look at {key}"


def _numbers(shard: Snapshot) -> Iterable[str]:
    counted = Counter(
        f"{record['queue']} {record['state']}" for record in shard.jobs.values() if State(record["state"]) not in FINAL
    )
    if counted != shard.counts:
        yield f"counted {dict(counted)}, kept {shard.counts}"
    for id, record in shard.jobs.items():
        if int(record["attempt"]) > int(record["max"]):
            yield f"{id} has had {record['attempt']} attempts of {record['max']}"


def _holders(shard: Snapshot) -> Iterable[str]:
    """A concurrency key is held by the running jobs that have it, within their limit; none waits for a free one."""
    holders: dict[str, set[str]] = {}
    limits: Counter[str] = Counter()
    lined_up: set[str] = set()
    for id, record in shard.jobs.items():
        if "ck" in record:
            key = f"key:{record['tenant']}:{record['ck']}"
            if record["state"] == "running":
                holders.setdefault(key, set()).add(f"{id}:{record['token']}")
                limits[key] = max(limits[key], int(record["cl"]))
            elif record["state"] == "queued" or record.get("park", "").startswith("limit:"):
                lined_up.add(key)  # who waits for its task's limit calls the next one when it leaves
    kept = {key: set(value) for key, value in shard.values.items() if key.startswith("key:")}
    if kept != holders:
        yield f"holders are {holders}, kept are {kept}"
    yield from (f"{key} is held {len(ids)} times" for key, ids in holders.items() if len(ids) > limits[key])
    for key in shard.zsets:
        if key.startswith("park:key:") and key[5:] not in holders.keys() | lined_up:
            yield f"nobody will ever wake {key}"


def _locks(shard: Snapshot) -> Iterable[str]:
    """A lock is held by one acquisition of a running job, and waited for only while it is held."""
    claims: dict[str, set[str]] = {}
    for id, record in shard.jobs.items():
        for line in record.get("lk", "").splitlines():
            number, _, name = line.partition(" ")
            if record["state"] != "running":
                yield f"{id} does not run and has {line!r} in its locks"
            elif name:
                holder = f"{id} {record['token']} {number}"
                claims.setdefault(f"{record['tenant']}:{name}", set()).add(holder)
    held = {key[5:]: _pairs(value)["holder"] for key, value in shard.values.items() if key.startswith("lock:")}
    waiting = {key[6:]: set(_pairs(value)) for key, value in shard.values.items() if key.startswith("waits:")}
    for name in held.keys() | waiting.keys() | claims.keys():
        one, others = held.get(name), waiting.get(name, set())
        if one is None or one in others or {one, *others} != claims.get(name):
            yield f"the lock {name} is held by {one}, waited for by {others}, and recorded for {claims.get(name)}"


def _limits(shard: Snapshot) -> Iterable[str]:
    """A task's slots are held by running attempts of it; what waits for its limits is looked at again."""
    waiting: dict[str, set[str]] = {}
    for key in shard.zsets:
        if key.startswith("park:limit:"):
            queue, priority, task = key.removeprefix("park:limit:").split(":", 2)
            waiting.setdefault(task, set()).add(f"{queue}:{priority}")
    for key, value in shard.values.items():
        kind, _, task = key.partition(":")
        for holder in value if kind == "slots" else ():
            id, _, token = holder.partition(":")
            record = shard.jobs.get(id, {})
            if (record.get("state"), record.get("token"), record.get("task")) != ("running", token, task):
                yield f"{key} is held by {holder}, which does not run"
    for task, places in waiting.items():
        if not set(shard.values.get(f"limited:{task}", [])) >= places:
            yield f"nobody knows of {places} of {task}"
        slots = int(_pairs(shard.values[f"limit:{task}"])["slots"])
        if task not in shard.zsets.get("gates", {}) and not 0 < slots <= len(shard.values.get(f"slots:{task}", [])):
            yield f"nobody will look again at what waits for the limits of {task}"


# Keys that need no TTL: a number of them that does not grow with the jobs that were, or as long as their jobs are not
# final.
KINDS = ("key", "slots", "limit", "limited", "lock", "waits")
LASTING = (
    "gates",
    "paused",
    "events",
    "catalogue",
    "versions",
    "counts",
    "clock",
    "workers",
    "parked",
    "expiries",
    "now",
)


def _lifetimes(shard: Snapshot) -> Iterable[str]:
    # What a ledger has still to read does not expire before.
    unread = {line.split()[0] for _, text in shard.events for line in text.splitlines()}
    unread = unread if "ledger" in _pairs(shard.values.get("clock", [])) else set()
    final = {id for id, record in shard.jobs.items() if State(record["state"]) in FINAL}
    keys = {record["idem"]: id for id, record in shard.jobs.items() if "idem" in record}
    queues = {name.split()[0] for name in _pairs(shard.values.get("counts", []))}  # also of jobs that are forgotten
    for key, left in shard.ttl.items():
        kind, _, name = key.partition(":")
        if kind in ("job", "out", "cold", "steps", "idem"):
            owner = keys.get(name) if kind == "idem" else name
            if owner in unread:
                continue
            ends = owner in final
        elif kind in ("worker", "tasks"):
            ends = True
        elif kind == "bell":
            ends = name not in queues
        elif key in LASTING or _is_place(key) or kind in KINDS:
            ends = False
        else:
            yield f"{key} is on no list"
            continue
        if (left > 0) != ends:
            yield f"{key} {'lacks a TTL' if ends else 'has a TTL'}"
