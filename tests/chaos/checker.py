"""What must hold of a chaos run, whatever happened in it. Written against API.md and DESIGN.md, not against the code.

`Evidence` is data: what clients were told, what tasks did, and what Redis, the ledger and the database hold once all is
quiet. `check` returns a sentence for each broken promise.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.chaos.clients import Told
from tests.chaos.recorder import Event

FINAL = {"succeeded", "failed", "cancelled"}
OUTCOMES = {"succeeded", "failed", "timeout", "cancelled", "worker_lost", "released"}
CHARGED = {"failed", "timeout", "worker_lost"}
LOSSES = 3  # that end a job
AFTERMATH = 10.0  # seconds for which a fault may still be felt
# The fates that a kind of work may have; a job that was cancelled may also be cancelled.
FATES: Mapping[str, set[str]] = {  # an OSError: the effects log could not be written either when the disk was full
    "chaos.refuses": {"refused", "worker_lost", "exception:OSError"},
    "chaos.late": {"timeout", "worker_lost", "exception:OSError"},
    "chaos.poison": {"worker_lost"},
}


@dataclass
class Evidence:
    """`records`: Redis' hashes by job id; `keys`: each key that is left, with its TTL in ms (-1: none)."""

    told: Sequence[Told] = ()
    effects: Sequence[Mapping[str, Any]] = ()
    events: Sequence[Event] = ()
    records: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    keys: Mapping[str, int] = field(default_factory=dict)
    members: Mapping[str, int] = field(default_factory=dict)  # of the places in which jobs stand that are not final
    counts: Mapping[str, int] = field(default_factory=dict)  # of jobs by queue and state
    applied: Sequence[str] = ()  # keys, a row each
    ledger: Mapping[str, str] | None = None  # state by job id
    faults: Sequence[tuple[float, float]] = ()  # when something was hurt, in seconds since the epoch
    crashed: Sequence[str] = ()  # lines of logs that no fault explains


class Attempt:
    """One line of a record's attempts."""

    def __init__(self, line: str) -> None:
        number, began, ended, self.outcome, self.worker = line.split(" ")
        self.number, self.began, self.ended = int(number), int(began), int(ended)


def attempts(record: Mapping[str, str]) -> list[Attempt]:
    return [Attempt(line) for line in record.get("attempts", "").splitlines()]


def check(evidence: Evidence) -> list[str]:
    """Every broken promise, in words."""
    parts = (accepted, keys_of, states, lives, policies, losses, effects, applied, streams, leftovers, ledger)
    broken = [sentence for part in parts for sentence in part(evidence)]
    return [*broken, *(f"a log says: {line}" for line in evidence.crashed)]


def accepted(evidence: Evidence) -> Iterator[str]:
    """A job answered with 202 is known, and final."""
    for told in evidence.told:
        yield from (f"{told.key}: {sentence}" for sentence in told.wrong)
        if not told.ids:
            yield f"{told.key}: never accepted"
        for id in told.ids:
            record = evidence.records.get(id)
            if record is None:
                yield f"{id} ({told.task}): accepted and lost"
            elif record["state"] not in FINAL:
                yield f"{id} ({told.task}): still {record['state']}"


def keys_of(evidence: Evidence) -> Iterator[str]:
    """A key has one job, and nobody has a job that nobody asked for."""
    for told in evidence.told:
        if len(set(told.ids)) > 1:
            yield f"{told.key}: several jobs, {sorted(set(told.ids))}"
    known = {id for told in evidence.told for id in told.ids}
    for id in evidence.records.keys() - known:
        yield f"{id}: a job that no client has"


def states(evidence: Evidence) -> Iterator[str]:
    """A final state is reached once, and every view of it is the same."""
    ends: dict[str, list[Event]] = defaultdict(list)
    last: dict[str, int] = {}
    for event in evidence.events:
        if event.state in FINAL:
            ends[event.id].append(event)
        elif event.id in ends:
            yield f"{event.id}: {event.state} after it was {ends[event.id][0].state}"
        if event.stamp <= last.get(event.id, 0):
            yield f"{event.id}: stamp {event.stamp} after {last[event.id]}"
        last[event.id] = event.stamp
    for id, found in ends.items():
        if len(found) > 1:
            yield f"{id}: ended {len(found)} times, {[event.state for event in found]}"
        record = evidence.records.get(id)
        if record is not None and record["state"] != found[-1].state:
            yield f"{id}: the event says {found[-1].state}, the record {record['state']}"
    for told in evidence.told:
        record = evidence.records.get(told.ids[0]) if told.ids else None
        seen = {state for state, _ in told.finals} | ({record["state"]} if record is not None else set())
        tags = {tag for _, tag in told.finals if tag}
        if told.finals and (len(seen) > 1 or len(tags) > 1):
            yield f"{told.key}: seen final as {sorted(seen)} with {sorted(tags)}"


def lives(evidence: Evidence) -> Iterator[str]:
    """Attempts follow one another, one at most is accepted, and the result is that one's."""
    for id, record in evidence.records.items():
        lines = attempts(record)
        for before, after in pairwise(lines):
            if after.began <= before.ended:
                yield f"{id}: attempt {after.number} began before attempt {before.number} had ended"
            if after.number != before.number + (before.outcome != "released"):
                yield f"{id}: attempt {after.number} after attempt {before.number}, {before.outcome}"
        if [one.outcome for one in lines].count("succeeded") != (record["state"] == "succeeded"):
            yield f"{id}: {record['state']} after {[one.outcome for one in lines]}"
        for one in lines:
            if one.outcome not in OUTCOMES or one.ended < one.began:
                yield f"{id}: attempt {one.number} {one.outcome}, from {one.began} to {one.ended}"
        stamp = record.get("result", "")
        told = record["task"] in ("chaos.quick", "chaos.slow", "chaos.flaky") and record["state"] == "succeeded"
        if told and (not lines or stamp != str(lines[-1].began)):
            yield f"{id}: the result is of {stamp}, not of the accepted attempt"


def policies(evidence: Evidence) -> Iterator[str]:
    """No more attempts than allowed are charged, and the reason of an end is one that the work can have."""
    cancelled = {id for told in evidence.told if told.cancelled for id in told.ids}
    for id, record in evidence.records.items():
        outcomes = Counter(one.outcome for one in attempts(record))
        charged = sum(outcomes[one] for one in CHARGED)
        allowed = int(record["max"])
        if charged > allowed:
            yield f"{id}: {charged} attempts charged of {allowed}"
        if outcomes["worker_lost"] > LOSSES:
            yield f"{id}: lost {outcomes['worker_lost']} workers"
        if record["state"] == "cancelled" and id not in cancelled:
            yield f"{id}: cancelled, and nobody asked for it"
        if record["state"] == "failed":
            yield from _reason(id, record, charged, allowed, outcomes)


def losses(evidence: Evidence) -> Iterator[str]:
    """A worker is lost only if something was hurt around that time; nobody else may take its jobs from it."""
    for id, record in evidence.records.items():
        for one in attempts(record):
            near = (one.began / 1e6 - AFTERMATH, one.ended / 1e6)
            if one.outcome == "worker_lost" and not any(
                begun <= near[1] and near[0] <= end for begun, end in evidence.faults
            ):
                yield f"{id}: attempt {one.number} lost its worker, and nothing was hurt"


def _reason(
    id: str, record: Mapping[str, str], charged: int, allowed: int, outcomes: Mapping[str, int]
) -> Iterator[str]:
    error = record.get("error", "")
    fates = FATES.get(record["task"])
    if fates is not None:
        if not any(f'"type":"{fate}"' in error for fate in fates):
            yield f"{id} ({record['task']}): failed for {error}"
    elif charged < allowed and outcomes["worker_lost"] < LOSSES:
        yield f"{id} ({record['task']}): given up after {charged} of {allowed} attempts: {error}"


def effects(evidence: Evidence) -> Iterator[str]:
    """What a succeeded job says was done was done, by the attempt that was accepted; and nobody else did anything."""
    done: dict[str, set[int]] = defaultdict(set)
    for effect in evidence.effects:
        if effect["word"] == "done":
            done[effect["job"]].add(effect["stamp"])
    for id, record in evidence.records.items():
        if record["state"] != "succeeded" or not record["task"].startswith("chaos."):
            continue
        if not done[id]:
            yield f"{id} ({record['task']}): succeeded, and nothing was done"
        elif record["task"] != "chaos.thread" and attempts(record)[-1].began not in done[id]:
            yield f"{id} ({record['task']}): the accepted attempt did nothing"
    for id in done.keys() - evidence.records.keys():
        yield f"{id}: did something, and is unknown"


def applied(evidence: Evidence) -> Iterator[str]:
    """SQL work is there once if its job succeeded, and at most once if not."""
    rows = Counter(evidence.applied)
    for told in evidence.told:
        if told.task == "sql.execute":
            count = rows.pop(told.key, 0)
            states = {evidence.records[id]["state"] for id in told.ids if id in evidence.records}
            if count > 1 or (count == 0 and "succeeded" in states):
                yield f"{told.key}: {states}, applied {count} times"
    for key in rows:
        yield f"{key}: applied, and nobody asked for it"


def streams(evidence: Evidence) -> Iterator[str]:
    """A stream that was followed is in order, without repeats, whole for the accepted attempt, and has its end."""
    for told in evidence.told:
        if not told.places:
            continue
        if not all(before < after for before, after in pairwise(told.places)):
            yield f"{told.key}: the stream's ids do not grow"
        if any(before[0] > after[0] for before, after in pairwise(told.output)):
            yield f"{told.key}: output of an earlier attempt after that of a later one"
        if not told.ended:
            yield f"{told.key}: the stream never ended"
        record = evidence.records.get(told.ids[0]) if told.ids else None
        if record is None or record["state"] != "succeeded":
            continue
        accepted = [number for attempt, number in told.output if attempt == int(record["attempt"])]
        # A job that was handed back begins again under the same number: its last run counts.
        if accepted[-told.count :] != list(range(told.count)):
            yield f"{told.key}: {len(accepted)} items of {told.count} came, or not in order"


def leftovers(evidence: Evidence) -> Iterator[str]:
    """Once all is quiet nothing waits, nothing is held, and what is kept has an end."""
    for place, count in evidence.members.items():
        if count:
            yield f"{place} still holds {count}"
    for name, count in evidence.counts.items():
        if count:
            yield f"{count} jobs are counted as {name}"
    for key, ttl in evidence.keys.items():
        if ttl < 0 and _ends(key):
            yield f"{key} has no end"


def _ends(key: str) -> bool:
    kind = key.removeprefix("tandem:{a}:").partition(":")[0]
    return kind in ("job", "idem", "out", "seg", "segments", "steps", "key", "worker", "tasks", "lock")


def ledger(evidence: Evidence) -> Iterator[str]:
    """The ledger has caught up: it knows every job, as Redis does."""
    if evidence.ledger is None:
        return
    for id, record in evidence.records.items():
        state = evidence.ledger.get(id)
        if state != record["state"]:
            yield f"{id}: {record['state']}, the ledger says {state}"
    for id in evidence.ledger.keys() - evidence.records.keys():
        yield f"{id}: in the ledger alone"


def summary(evidence: Evidence) -> dict[str, Any]:
    """Figures of the run."""
    found: Iterable[Mapping[str, str]] = evidence.records.values()
    outcomes = Counter(one.outcome for record in evidence.records.values() for one in attempts(record))
    return {
        "jobs": len(evidence.records),
        "states": dict(Counter(record["state"] for record in found)),
        "attempts": dict(outcomes),
        "effects": len(evidence.effects),
        "streams": sum(1 for told in evidence.told if told.ended),
    }
