"""What must hold of a chaos run, whatever happened in it. Written against API.md and DESIGN.md, not against the code.

`check` returns a sentence for each broken promise.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise

from tests.chaos.check import traces
from tests.chaos.check.evidence import Event, Evidence, attempts

FINAL = {"succeeded", "failed", "cancelled"}
OUTCOMES = {"succeeded", "failed", "timeout", "cancelled", "worker_lost", "released"}
CHARGED = {"failed", "timeout", "worker_lost"}
LOSSES = 3  # that end a job
AFTERMATH = 10.0  # seconds for which a fault may still be felt
STAMPED = {
    "chaos.quick",
    "chaos.slow",
    "chaos.flaky",
    "chaos.locked",
}  # whose result is the stamp of their attempt
# The fates that a kind of work may have; a job that was cancelled may also be cancelled.
FATES: Mapping[
    str, set[str]
] = {  # an OSError: the effects log could not be written either when the disk was full
    "chaos.refuses": {"refused", "worker_lost", "exception:OSError"},
    "chaos.late": {"timeout", "worker_lost", "exception:OSError"},
    "chaos.poison": {"worker_lost", "exception:OSError"},
}
# What names its owner, and so has to end with it.
OWNED = {"job", "idem", "out", "cold", "steps", "key", "slots", "worker", "tasks", "lock", "waits"}


def check(evidence: Evidence) -> list[str]:
    """Every broken promise, in words."""
    parts = (
        *(accepted, keys_of, states, seen, lives, starts, policies, losses, leftovers, ledger),
        *(
            traces.effects,
            traces.steps,
            traces.locks,
            traces.holders,
            traces.applied,
            traces.streams,
        ),
    )
    broken = [sentence for part in parts for sentence in part(evidence)]
    return [*broken, *(f"a log says: {line}" for line in evidence.logged)]


def accepted(evidence: Evidence) -> Iterator[str]:
    """A job answered with 202 is known, and final."""
    forgiven = evidence.forgiven()
    for told in evidence.told:
        yield from (f"{told.key}: {sentence}" for sentence in told.wrong)
        if not told.ids:
            yield f"{told.key}: never accepted"
        if told.gone and not forgiven.intersection(told.ids):
            yield f"{told.key}: accepted, and later unknown"
        for id in told.ids:
            record = evidence.records.get(id)
            if record is None and id not in forgiven:
                yield f"{id} ({told.task}): accepted and lost"
            elif record is not None and record["state"] not in FINAL:
                yield f"{id} ({told.task}): still {record['state']}"


def keys_of(evidence: Evidence) -> Iterator[str]:
    """A key has one job, and nobody has a job that nobody asked for."""
    forgiven = evidence.forgiven()
    for told in evidence.told:
        if len(set(told.ids) - forgiven) > 1:
            yield f"{told.key}: several jobs, {sorted(set(told.ids))}"
    known = {id for told in evidence.told for id in told.ids}
    for id in evidence.records.keys() - known:
        yield f"{id}: a job that no client has"


def states(evidence: Evidence) -> Iterator[str]:
    """A final state is reached once, stamps grow, and the record is what the last event says."""
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
    for id, record in evidence.records.items():
        if record["state"] in FINAL and id not in ends:
            yield f"{id}: {record['state']}, and no event says so"
        elif id in ends and (record["state"], int(record["v"])) != (
            ends[id][-1].state,
            ends[id][-1].stamp,
        ):
            yield f"{id}: the event says {ends[id][-1].state}, the record {record['state']}"


def seen(evidence: Evidence) -> Iterator[str]:
    """Whoever saw a job final saw the same, however often and wherever they looked."""
    for told in evidence.told:
        views = [view for view in told.finals if not evidence.forgotten(view.asked, view.answered)]
        record = evidence.records.get(told.ids[0]) if told.ids else None
        found = {view.state for view in views} | (
            {record["state"]} if record is not None else set()
        )
        tags = {view.tag for view in views if view.tag}
        if views and (len(found) > 1 or len(tags) > 1):
            yield f"{told.key}: seen final as {sorted(found)} with {sorted(tags)}"


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
        if record["task"] in STAMPED and record["state"] == "succeeded":
            stamp = record.get("result", "")
            if not lines or stamp != str(lines[-1].began):
                yield f"{id}: the result is of {stamp}, not of the accepted attempt"


def starts(evidence: Evidence) -> Iterator[str]:
    """While the queue is paused nothing of it starts."""
    pauses = [
        (begun, end)
        for begun, end in evidence.pauses
        if not any(
            begun <= crash <= end for crash in evidence.crashes
        )  # which may have forgotten the pause
    ]
    for id, record in evidence.records.items():
        for one in attempts(record):
            if any(begun < one.began / 1e6 < end for begun, end in pauses):
                yield f"{id}: attempt {one.number} began while the queue was paused"


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
        if record["state"] == "succeeded" and record["task"] in FATES:
            yield f"{id} ({record['task']}): succeeded, which it cannot"
        if record["state"] == "failed":
            yield from _reason(id, record, charged, allowed, outcomes)


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


def losses(evidence: Evidence) -> Iterator[str]:
    """A worker is lost only if something was hurt around that time; nobody else may take its jobs from it."""
    for id, record in evidence.records.items():
        for one in attempts(record):
            near = (one.began / 1e6 - AFTERMATH, one.ended / 1e6)
            if one.outcome == "worker_lost" and not any(
                begun <= near[1] and near[0] <= end for begun, end in evidence.faults
            ):
                yield f"{id}: attempt {one.number} lost its worker, and nothing was hurt"


def leftovers(evidence: Evidence) -> Iterator[str]:
    """Once all is quiet nothing waits, nothing is held, and what is kept has an end."""
    for place, count in evidence.members.items():
        if count:
            yield f"{place} still holds {count}"
    for name, count in evidence.counts.items():
        if count:
            yield f"{count} jobs are counted as {name}"
    for key, ttl in evidence.keys.items():
        if ttl < 0 and key.removeprefix("tandem:{a}:").partition(":")[0] in OWNED:
            yield f"{key} has no end"


def ledger(evidence: Evidence) -> Iterator[str]:
    """The ledger has caught up: it knows every job, as Redis does."""
    for id, record in evidence.records.items():
        state, stamp = evidence.ledger.get(id, ("nothing", 0))
        if (state, stamp) != (record["state"], int(record["v"])):
            yield f"{id}: {record['state']} at {record['v']}, the ledger says {state} at {stamp}"
    for id in evidence.ledger.keys() - evidence.records.keys() - evidence.forgiven():
        yield f"{id}: in the ledger alone"
