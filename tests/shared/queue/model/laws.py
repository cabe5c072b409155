"""The laws that always hold for what stands in a shard."""

from collections import Counter
from collections.abc import Iterable, Mapping

from tandem_shared.jobs.states import FINAL, State
from tests.shared.queue.model.shard import Snapshot, is_place, pairs


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
    return (
        ["suspects"]
        if int(record.get("losses", 0)) >= 2
        else [f"q:{record['queue']}:{record['prio']}"]
    )


def broken(shard: Snapshot) -> list[str]:
    """Every law that does not hold, with whom it does not hold for."""
    found = [
        *_places(shard),
        *_fields(shard),
        *_numbers(shard),
        *_holders(shard),
        *_limits(shard),
        *_locks(shard),
    ]
    return [*found, *_lifetimes(shard)]


# The scripts tell by the number of fields whether a record has any besides these.
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
        if is_place(key) or key == "expiries":
            yield from (
                f"{id} stands in {key} without a record" for id in members if id not in shard.jobs
            )
        if key.startswith(("park:task:", "park:format:")) and key[5:] not in shard.values.get(
            "parked", []
        ):
            yield f"nobody would look at {key}"


def _numbers(shard: Snapshot) -> Iterable[str]:
    counted = Counter(
        f"{record['queue']} {record['state']}"
        for record in shard.jobs.values()
        if State(record["state"]) not in FINAL
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
                lined_up.add(
                    key
                )  # who waits for its task's limit calls the next one when it leaves
    kept = {key: set(value) for key, value in shard.values.items() if key.startswith("key:")}
    if kept != holders:
        yield f"holders are {holders}, kept are {kept}"
    yield from (
        f"{key} is held {len(ids)} times" for key, ids in holders.items() if len(ids) > limits[key]
    )
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
            if (record.get("state"), record.get("token"), record.get("task")) != (
                "running",
                token,
                task,
            ):
                yield f"{key} is held by {holder}, which does not run"
    for task, places in waiting.items():
        if not set(shard.values.get(f"limited:{task}", [])) >= places:
            yield f"nobody knows of {places} of {task}"
        slots = int(pairs(shard.values[f"limit:{task}"])["slots"])
        if task not in shard.zsets.get("gates", {}) and not 0 < slots <= len(
            shard.values.get(f"slots:{task}", [])
        ):
            yield f"nobody will look again at what waits for the limits of {task}"


# Keys that need no TTL: a number of them that does not grow with the jobs that were, or as long as
# their jobs are not final.
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
    unread = unread if "ledger" in pairs(shard.values.get("clock", [])) else set()
    final = {id for id, record in shard.jobs.items() if State(record["state"]) in FINAL}
    keys = {record["idem"]: id for id, record in shard.jobs.items() if "idem" in record}
    queues = {
        name.split()[0] for name in pairs(shard.values.get("counts", []))
    }  # also of jobs that are forgotten
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
        elif key in LASTING or is_place(key) or kind in KINDS:
            ends = False
        else:
            yield f"{key} is on no list"
            continue
        if (left > 0) != ends:
            yield f"{key} {'lacks a TTL' if ends else 'has a TTL'}"
