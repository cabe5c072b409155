"""The invariants of a shard, checked on a snapshot, independently of doctor.lua."""

from collections import Counter
from collections.abc import Iterable, Mapping

from tandem_shared.jobs.states import FINAL, State
from tests.shared.queue.model.shard import Snapshot, is_place, pairs


def home(record: Mapping[str, str]) -> list[str]:
    """The only place where a record belongs, none if it is final."""
    state = State(record["state"])
    if state in FINAL:
        return []
    if state is State.RUNNING:
        return ["leases"]
    if state in (State.SCHEDULED, State.RETRYING):
        return ["later"]
    if state is State.WAITING:
        return [f"park:{record['park']}"]
    return (
        ["suspects"]
        if int(record.get("losses", 0)) >= 2
        else [f"q:{record['queue']}:{record['prio']}"]
    )


def broken(shard: Snapshot) -> list[str]:
    """Every invariant that does not hold, with its subject."""
    found = [
        *_places(shard),
        *_fields(shard),
        *_numbers(shard),
        *_holders(shard),
        *_limits(shard),
        *_locks(shard),
    ]
    return [*found, *_lifetimes(shard)]


# Scripts tell from the number of fields whether a record has others.
SUBMITTED = frozenset(
    "state v attempt queue prio due tenant max f task ver opts payload at".split()
)
SUCCEEDED = SUBMITTED | set("began token attempts result ended".split())


def _fields(shard: Snapshot) -> Iterable[str]:
    for id, record in shard.jobs.items():
        begun = (
            {"began", "token"}
            if {"began", "token"} & record.keys() or record["state"] == "running"
            else set()
        )
        if (
            missing := (SUCCEEDED if record["state"] == "succeeded" else SUBMITTED | begun)
            - record.keys()
        ):
            yield f"{id} is {record['state']} and lacks {sorted(missing)}"


def _places(shard: Snapshot) -> Iterable[str]:
    for id, record in shard.jobs.items():
        places = shard.place(id)
        if places != home(record):
            yield f"{id} is {record['state']} and in {places}, not in {home(record)}"
        elif places and places != ["leases"] and shard.zsets[places[0]][id] != int(record["due"]):
            yield f"{id} is not at its due time"
        waits = State(record["state"]) not in {*FINAL, State.RUNNING} and "exp" in record
        if waits != (id in shard.zsets.get("expiries", {})):
            yield f"{id} {'lacks' if waits else 'has'} an entry in expiries"
    for key, members in shard.zsets.items():
        if is_place(key) or key == "expiries":
            yield from (
                f"{id} is in {key} without a record" for id in members if id not in shard.jobs
            )
        if key.startswith(("park:task:", "park:format:")) and key[5:] not in shard.values.get(
            "parked", []
        ):
            yield f"{key} is not listed, so no worker would look at it"


def _numbers(shard: Snapshot) -> Iterable[str]:
    counted = Counter(
        f"{record['queue']} {record['state']}"
        for record in shard.jobs.values()
        if State(record["state"]) not in FINAL
    )
    if counted != shard.counts:
        yield f"counted {dict(counted)}, but kept {shard.counts}"
    for id, record in shard.jobs.items():
        if int(record["attempt"]) > int(record["max"]):
            yield f"{id} has had {record['attempt']} attempts of {record['max']}"


def _holders(shard: Snapshot) -> Iterable[str]:
    """Running jobs hold their concurrency key, within its limit; no job waits for a free key."""
    holders: dict[str, set[str]] = {}
    limits: Counter[str] = Counter()
    woken: set[str] = set()  # keys with a job that wakes the next one when it leaves
    for id, record in shard.jobs.items():
        if "ck" in record:
            key = f"key:{record['tenant']}:{record['ck']}"
            if record["state"] == "running":
                holders.setdefault(key, set()).add(f"{id}:{record['token']}")
                limits[key] = max(limits[key], int(record["cl"]))
            elif record["state"] == "queued" or record.get("park", "").startswith("limit:"):
                woken.add(key)
    kept = {key: set(value) for key, value in shard.values.items() if key.startswith("key:")}
    if kept != holders:
        yield f"holders are {holders}, but kept are {kept}"
    yield from (
        f"{key} is held {len(ids)} times" for key, ids in holders.items() if len(ids) > limits[key]
    )
    for key in shard.zsets:
        if key.startswith("park:key:") and key[5:] not in holders.keys() | woken:
            yield f"nothing will ever wake {key}"


def _locks(shard: Snapshot) -> Iterable[str]:
    """One acquisition of a running job holds a lock; others wait only while it is held."""
    claims: dict[str, set[str]] = {}
    for id, record in shard.jobs.items():
        for line in record.get("lk", "").splitlines():
            number, _, name = line.partition(" ")
            if record["state"] != "running":
                yield f"{id} is not running and has {line!r} in its locks"
            elif name:
                holder = f"{id} {record['token']} {number}"
                claims.setdefault(f"{record['tenant']}:{name}", set()).add(holder)
    held = {
        key[5:]: pairs(value)["holder"]
        for key, value in shard.values.items()
        if key.startswith("lock:")
    }
    waiting = {
        key[6:]: set(pairs(value))
        for key, value in shard.values.items()
        if key.startswith("waits:")
    }
    for name in held.keys() | waiting.keys() | claims.keys():
        one, others = held.get(name), waiting.get(name, set())
        if one is None or one in others or {one, *others} != claims.get(name):
            yield f"lock {name}: held by {one}, queue {others}, recorded {claims.get(name)}"


def _limits(shard: Snapshot) -> Iterable[str]:
    """Running attempts hold a task's slots; jobs parked by its limits will be looked at again."""
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
            if (record.get("state"), record.get("token"), record.get("task")) != (
                "running",
                token,
                task,
            ):
                yield f"{key} is held by {holder}, which is not running"
    for task, places in waiting.items():
        if not set(shard.values.get(f"limited:{task}", [])) >= places:
            yield f"{places} of {task} are not listed"
        slots = int(pairs(shard.values[f"limit:{task}"])["slots"])
        if task not in shard.zsets.get("gates", {}) and not 0 < slots <= len(
            shard.values.get(f"slots:{task}", [])
        ):
            yield f"nothing will look again at jobs parked by the limits of {task}"


# Keys without a TTL: they live only while their jobs are unfinished, or their number does not grow
# with the jobs.
KINDS = ("key", "slots", "limit", "limited", "lock", "waits")
LASTING = (
    "gates",
    "paused",
    "events",
    "catalogue",
    "versions",
    "published",
    "counts",
    "clock",
    "workers",
    "parked",
    "expiries",
    "now",
)


def _lifetimes(shard: Snapshot) -> Iterable[str]:
    # Records that the ledger has not read yet do not expire.
    unread = {line.split()[0] for _, text in shard.events for line in text.splitlines()}
    unread = unread if "ledger" in pairs(shard.values.get("clock", [])) else set()
    final = {id for id, record in shard.jobs.items() if State(record["state"]) in FINAL}
    keys = {record["idem"]: id for id, record in shard.jobs.items() if "idem" in record}
    # Includes queues of deleted jobs.
    queues = {name.split()[0] for name in pairs(shard.values.get("counts", []))}
    for key, left in shard.ttl.items():
        kind, _, name = key.partition(":")
        if kind in ("job", "out", "cold", "steps", "idem"):
            owner = keys.get(name) if kind == "idem" else name
            if owner in unread:
                continue
            ends = owner in final
        elif kind in ("worker", "tasks", "entries"):
            ends = True
        elif kind == "bell":
            ends = name not in queues
        elif key in LASTING or is_place(key) or kind in KINDS:
            ends = False
        else:
            yield f"{key} is not on any list"
            continue
        if (left > 0) != ends:
            yield f"{key} {'lacks a TTL' if ends else 'has a TTL'}"
