"""The invariants of a shard, checked on a snapshot, independently of doctor.lua."""

from collections import Counter
from collections.abc import Iterable, Mapping
from math import inf

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
        return [f"later:{record['queue']}:{record['prio']}"]
    if state is State.WAITING:
        return [f"park:{record['park']}"]
    return (
        [f"suspects:{record['queue']}"]
        if int(record.get("losses", 0)) >= 2
        else [f"q:{record['queue']}:{record['prio']}"]
    )


def broken(shard: Snapshot) -> list[str]:
    """Every invariant that does not hold, with its subject."""
    found = [
        *_places(shard),
        *_fields(shard),
        *_numbers(shard),
        *_limits(shard),
        *_waiters(shard),
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
        kind, _, name = key.partition(":")
        queue = name.split(":")[1 if kind == "park" else 0]
        if key.startswith(("park:task:", "park:format:")) and not (
            name in shard.values.get(f"parked:{queue}", [])
            and queue in shard.values.get("parked", [])
        ):
            yield f"{key} is not listed, so no worker would look at it"
        if kind == "suspects" and queue not in shard.values.get("suspected", []):
            yield f"{key} is not listed, so no worker would look at it"
        if kind == "later" and shard.zsets["agenda"].get(name, inf) > min(members.values()):
            yield f"nothing will look at {key} in time"


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


def _limits(shard: Snapshot) -> Iterable[str]:
    """Running attempts hold the slots of their limits, and no more than one of them allows."""
    holders: dict[str, set[str]] = {}
    allowed: dict[str, int] = {}
    for id, record in shard.jobs.items():
        names = {record["slot"]} if "slot" in record else set()
        if "ck" in record:
            key = f"key:{record['tenant']}:{record['ck']}"
            allowed[key] = max(allowed.get(key, 0), int(record["cl"]))
            names.add(key)
        for name in names if record["state"] == "running" else ():
            holders.setdefault(name, set()).add(f"{id}:{record['token']}")
    kept = _kept_slots(shard)
    if kept != holders:
        yield f"holders are {holders}, but kept are {kept}"
    for name, most in allowed.items():
        if len(kept.get(name, ())) > most:
            yield f"{name} is held {len(kept[name])} times"


def _kept_slots(shard: Snapshot) -> dict[str, set[str]]:
    return {key[6:]: set(value) for key, value in shard.values.items() if key[:6] == "slots:"}


def _waiters(shard: Snapshot) -> Iterable[str]:
    """Jobs that wait for a limit will be looked at again."""
    waiting: dict[str, set[str]] = {}
    for key in shard.zsets:
        if key.startswith("park:limit:"):
            queue, priority, name = key.removeprefix("park:limit:").split(":", 2)
            waiting.setdefault(name, set()).add(f"{queue}:{priority}")
    for name, places in waiting.items():
        if not set(shard.values.get(f"limited:{name}", [])) >= places:
            yield f"{places} of {name} are not listed"
        slots = int(pairs(shard.values[f"limit:{name}"])["slots"])
        full = 0 < slots <= len(_kept_slots(shard).get(name, ()))
        if name not in shard.zsets.get("gates", {}) and not full:
            yield f"nothing will look again at jobs parked by {name}"


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


# Keys without a TTL: they live only while their jobs are unfinished, or their number does not grow
# with the jobs.
KINDS = ("slots", "parked", "limit", "limited", "lock", "waits")
LASTING = (
    "agenda",
    "gates",
    "paused",
    "suspected",
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
    for key, left in shard.ttl.items():
        kind, _, name = key.partition(":")
        if kind in ("job", "out", "cold", "steps", "idem"):
            owner = keys.get(name) if kind == "idem" else name
            if owner in unread:
                continue
            ends = owner in final
        elif kind in ("worker", "tasks", "entries", "bell"):
            ends = True
        elif key in LASTING or is_place(key) or kind in KINDS:
            ends = False
        else:
            yield f"{key} is not on any list"
            continue
        if (left > 0) != ends:
            yield f"{key} {'lacks a TTL' if ends else 'has a TTL'}"
