"""What must hold after a chaos run, whatever happened in it.

Written against the API's and the queue's promises, not against the code. `check` returns a sentence
for each broken promise.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise

from tests.chaos.check import traces
from tests.chaos.check.evidence import Evidence, Transition, attempts

FINAL = {"succeeded", "failed", "cancelled"}
OUTCOMES = {"succeeded", "failed", "timeout", "cancelled", "worker_lost", "released"}
CHARGED = {"failed", "timeout", "worker_lost"}
MAX_LOSSES = 3  # of workers, then the job fails
AFTERMATH_SECONDS = 10.0  # how long after a fault its effects may show
# Tasks whose result is the stamp of their attempt.
STAMPED = {"chaos.quick", "chaos.slow", "chaos.flaky", "chaos.locked", "chaos.blocks"}
# Tasks that note that an attempt has begun, before all else.
NOTED = {"chaos.quick", "chaos.slow", "chaos.blocks"}
CLAIM_SECONDS = 1.0  # from the claim of a job until its task begins, if a slot is free
# Task → the error types with which it may fail. On a full disk the effects log cannot be written
# (OSError). A job that was cancelled may be cancelled instead.
FAILURES: Mapping[str, set[str]] = {
    "chaos.refuses": {"refused", "worker_lost", "exception:OSError"},
    "chaos.late": {"timeout", "worker_lost", "exception:OSError"},
    "chaos.poison": {"worker_lost", "exception:OSError"},
    "chaos.blocks": {"timeout", "worker_lost", "exception:OSError"},
}
MAY_SUCCEED = {"chaos.blocks"}
# Kinds of keys that belong to a job, a worker or a task, and must expire with it.
OWNED = {"job", "idem", "out", "cold", "steps", "key", "slots", "worker", "tasks", "lock", "waits"}


def check(evidence: Evidence) -> list[str]:
    """Every broken promise, as a sentence."""
    rules = (
        *(accepted_jobs_end, one_job_per_key, state_changes, last_events, views, attempt_lines),
        *(paused_queue, retry_policies, lost_workers, charged_attempts, leftovers, ledger),
        *(traces.effects, traces.steps, traces.locks, traces.concurrency_keys),
        *(traces.applied_once, traces.streams),
    )
    broken = [sentence for rule in rules for sentence in rule(evidence)]
    return [*broken, *(f"a log has an error: {line}" for line in evidence.errors)]


def accepted_jobs_end(evidence: Evidence) -> Iterator[str]:
    """A job answered with 202 is known, and final."""
    lost = evidence.lost_jobs()
    for log in evidence.submissions:
        yield from (f"{log.key}: {sentence}" for sentence in log.unexpected)
        if not log.ids:
            yield f"{log.key}: never accepted"
        # An API that reaches Redis late submits again late: until then, its jobs are unknown.
        late = evidence.may_be_lost(log.requested, log.answered)
        if log.not_found and not late and not lost.intersection(log.ids):
            yield f"{log.key}: accepted, and later unknown"
        for id in log.ids:
            record = evidence.records.get(id)
            if record is None and id not in lost:
                yield f"{id} ({log.task}): accepted and lost"
            elif record is not None and record["state"] not in FINAL:
                yield f"{id} ({log.task}): still {record['state']}"


def one_job_per_key(evidence: Evidence) -> Iterator[str]:
    """An idempotency key has one job, and every job was submitted by a client."""
    lost = evidence.lost_jobs()
    for log in evidence.submissions:
        if len(set(log.ids) - lost) > 1:
            yield f"{log.key}: several jobs, {sorted(set(log.ids))}"
    submitted = {id for log in evidence.submissions for id in log.ids}
    for id in evidence.records.keys() - submitted:
        yield f"{id}: a job that no client submitted"


def state_changes(evidence: Evidence) -> Iterator[str]:
    """A job ends once and stays so; stamps grow."""
    ends: dict[str, list[Transition]] = defaultdict(list)
    last: dict[str, int] = {}
    for event in evidence.transitions:
        if event.state in FINAL:
            ends[event.id].append(event)
        elif event.id in ends:
            yield f"{event.id}: {event.state} after it was {ends[event.id][0].state}"
        if event.stamp <= last.get(event.id, 0):
            yield f"{event.id}: stamp {event.stamp} after {last[event.id]}"
        last[event.id] = event.stamp
    for id, events in ends.items():
        if len(events) > 1:
            yield f"{id}: ended {len(events)} times, {[event.state for event in events]}"


def last_events(evidence: Evidence) -> Iterator[str]:
    """The record of a final job agrees with its last event."""
    ends = {event.id: event for event in evidence.transitions if event.state in FINAL}
    for id, record in evidence.records.items():
        if id in ends:
            event = ends[id]
            if (record["state"], int(record["v"])) != (event.state, event.stamp):
                yield f"{id}: the event says {event.state}, the record {record['state']}"
        elif record["state"] in FINAL:
            yield f"{id}: {record['state']}, without an event"


def views(evidence: Evidence) -> Iterator[str]:
    """A final job looks the same to every client, however often and wherever it is read."""
    for log in evidence.submissions:
        seen = [
            view
            for view in log.finals
            if not evidence.may_be_forgotten(view.requested, view.answered)
        ]
        record = evidence.records.get(log.ids[0]) if log.ids else None
        states = {view.state for view in seen}
        if record is not None:
            states.add(record["state"])
        # What is written again has a new stamp, and with it a new ETag.
        etags = {
            view.etag
            for view in seen
            if view.etag and not evidence.may_be_lost(view.requested, view.answered)
        }
        if seen and (len(states) > 1 or len(etags) > 1):
            yield f"{log.key}: seen final as {sorted(states)} with {sorted(etags)}"


def attempt_lines(evidence: Evidence) -> Iterator[str]:
    """Attempts follow one another, at most one is accepted, and the result is its own."""
    for id, record in evidence.records.items():
        lines = attempts(record)
        losses = 0
        for before, after in pairwise(lines):
            last = f"attempt {before.number}"
            losses += before.outcome == "worker_lost"
            # A suspect's loss beside other jobs is not charged: one of these may be the cause.
            spared = losses == 3 and before.outcome == "worker_lost"
            # An end that Redis forgot is written again, before what happened since Redis is back.
            rewritten = evidence.may_be_lost(after.began / 1e6, before.ended / 1e6)
            if after.began <= before.ended and not rewritten:
                yield f"{id}: attempt {after.number} began before {last} ended"
            charged = before.outcome != "released"
            if after.number - before.number not in ({0, 1} if spared else {charged}):
                yield f"{id}: attempt {after.number} after {last}, {before.outcome}"
        outcomes = [line.outcome for line in lines]
        if outcomes.count("succeeded") != (record["state"] == "succeeded"):
            yield f"{id}: {record['state']} after {outcomes}"
        for line in lines:
            if line.outcome not in OUTCOMES or line.ended < line.began:
                span = f"from {line.began} to {line.ended}"
                yield f"{id}: attempt {line.number} {line.outcome}, {span}"
        if record["task"] in STAMPED and record["state"] == "succeeded":
            stamp = record.get("result", "")
            if not lines or stamp != str(lines[-1].began):
                yield f"{id}: the result is of {stamp}, not of the accepted attempt"


def paused_queue(evidence: Evidence) -> Iterator[str]:
    """A paused queue starts no jobs."""
    # A crash of Redis may have forgotten the pause.
    pauses = [
        (begin, end)
        for begin, end in evidence.pauses
        if not any(begin <= crash <= end for crash in evidence.crashes)
    ]
    for id, record in evidence.records.items():
        for line in attempts(record):
            if any(begin < line.began / 1e6 < end for begin, end in pauses):
                yield f"{id}: attempt {line.number} began while the queue was paused"


def retry_policies(evidence: Evidence) -> Iterator[str]:
    """Charged attempts stay within the limit; a job fails only for reasons its task can have."""
    cancelled = {id for log in evidence.submissions if log.cancelled for id in log.ids}
    for id, record in evidence.records.items():
        outcomes = Counter(line.outcome for line in attempts(record))
        charged = sum(outcomes[outcome] for outcome in CHARGED)
        allowed = int(record["max"])
        if charged > allowed:
            yield f"{id}: {charged} attempts charged of {allowed}"
        lost = [line.number for line in attempts(record) if line.outcome == "worker_lost"]
        # A suspect's loss beside other jobs is not charged, so its number is used once more.
        spared = lost[2:3] == lost[3:4] != []
        if len(lost) > MAX_LOSSES + spared:
            yield f"{id}: lost {len(lost)} workers"
        if record["state"] == "cancelled" and id not in cancelled:
            yield f"{id}: cancelled, and no client asked for it"
        if record["state"] == "succeeded" and record["task"] in FAILURES.keys() - MAY_SUCCEED:
            yield f"{id} ({record['task']}): succeeded, which it cannot"
        if record["state"] == "failed":
            yield from _failure(
                id, record, charged, outcomes, rewritten=_rewritten(evidence, record)
            )


def _rewritten(evidence: Evidence, record: Mapping[str, str]) -> bool:
    """Whether Redis may have forgotten some of the job's attempts, but was told its end again."""
    lines = attempts(record)
    return bool(lines) and evidence.may_be_lost(lines[0].began / 1e6, int(record["v"]) / 1e6)


def _failure(
    id: str,
    record: Mapping[str, str],
    charged: int,
    outcomes: Mapping[str, int],
    *,
    rewritten: bool,
) -> Iterator[str]:
    error, allowed = record.get("error", ""), int(record["max"])
    types = FAILURES.get(record["task"])
    if types is not None:
        if not any(f'"type":"{type}"' in error for type in types):
            yield f"{id} ({record['task']}): failed for {error}"
    elif charged < allowed and outcomes["worker_lost"] < MAX_LOSSES and not rewritten:
        yield f"{id} ({record['task']}): given up after {charged} of {allowed} attempts: {error}"


def lost_workers(evidence: Evidence) -> Iterator[str]:
    """An attempt loses its worker only around a fault; nothing else may take jobs from a worker."""
    for id, record in evidence.records.items():
        for line in attempts(record):
            first, last = line.began / 1e6 - AFTERMATH_SECONDS, line.ended / 1e6
            if line.outcome == "worker_lost" and not any(
                begin <= last and first <= end for begin, end in evidence.faults
            ):
                yield f"{id}: attempt {line.number} lost its worker without a fault"


def charged_attempts(evidence: Evidence) -> Iterator[str]:
    """A lost attempt that is charged had begun, unless its worker may not have received it."""
    began = {
        (effect["job"], effect["stamp"]) for effect in evidence.effects if effect["word"] == "began"
    }
    for id, record in evidence.records.items():
        for line in attempts(record) if record["task"] in NOTED else ():
            claimed = line.began / 1e6
            if (
                line.outcome == "worker_lost"
                and (id, line.began) not in began
                # A Redis that came back older may have forgotten that it was handed back.
                and not evidence.may_be_lost(claimed, line.ended / 1e6)
                and not any(
                    silence.begin - CLAIM_SECONDS <= claimed <= silence.end
                    and (not silence.pid or f"-{silence.pid}-" in line.worker)
                    for silence in evidence.silences
                )
            ):
                yield f"{id}: attempt {line.number} never ran, and is charged as lost"


def leftovers(evidence: Evidence) -> Iterator[str]:
    """Once all is quiet nothing waits, nothing is held, and every owned key expires."""
    for place, count in evidence.members.items():
        if count:
            yield f"{place} still holds {count}"
    for name, count in evidence.counts.items():
        if count:
            yield f"{count} jobs are counted as {name}"
    for key, ttl in evidence.keys.items():
        if ttl < 0 and key.removeprefix("tandem:{a}:").partition(":")[0] in OWNED:
            yield f"{key} never expires"


def ledger(evidence: Evidence) -> Iterator[str]:
    """The ledger has caught up: it has every job in the state that Redis has."""
    for id, record in evidence.records.items():
        state, stamp = evidence.ledger.get(id, ("nothing", 0))
        if (state, stamp) != (record["state"], int(record["v"])):
            yield f"{id}: {record['state']} at {record['v']}, the ledger says {state} at {stamp}"
    for id in evidence.ledger.keys() - evidence.records.keys() - evidence.lost_jobs():
        yield f"{id}: only in the ledger"
