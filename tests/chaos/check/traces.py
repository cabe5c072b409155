"""What must hold of what jobs leave behind: effects, steps, fences of locks, rows, streams."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import msgspec

from tests.chaos.check.evidence import Evidence, attempts

# How far a record's stamps may be ahead of the clock, after several transitions in one microsecond.
STAMP_LEAD_MICROSECONDS = 1000


def effects(evidence: Evidence) -> Iterator[str]:
    """What a succeeded job did was done by the accepted attempt; unknown jobs did nothing."""
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
    submitted = {id for log in evidence.submissions for id in log.ids}
    for id in {effect["job"] for effect in evidence.effects} - evidence.records.keys() - submitted:
        yield f"{id}: did something, and is unknown"


def steps(evidence: Evidence) -> Iterator[str]:
    """A step that returned never runs again: its result is that of the last attempt that ran it."""
    runs: dict[tuple[str, int], list[int]] = defaultdict(list)
    for effect in evidence.effects:
        if effect["word"].startswith("step "):
            runs[effect["job"], int(effect["word"].removeprefix("step "))].append(effect["stamp"])
    for (id, number), stamps in runs.items():
        if len(set(stamps)) < len(stamps):
            yield f"{id}: an attempt ran step {number} more than once"
    for id, record in evidence.records.items():
        # An end that Redis forgot is written again, and its steps may have run once more meanwhile.
        first, end = runs.get((id, 0), [0])[0], int(record["v"])
        if evidence.may_be_lost(first / 1e6, end / 1e6):
            continue
        if record["task"] == "chaos.steps" and record["state"] == "succeeded":
            for number, stamp in enumerate(msgspec.json.decode(record["result"])):
                if stamp != max(runs[id, number], default=0):
                    ran = sorted(runs[id, number])
                    yield f"{id}: step {number} returned {stamp}, and was run by {ran}"


def locks(evidence: Evidence) -> Iterator[str]:
    """While an accepted attempt holds a lock, no later holder has it; every fence is unique."""
    accepted = {
        id: attempts(record)[-1].began
        for id, record in evidence.records.items()
        if record["state"] == "succeeded"
    }
    holders: dict[str, Mapping[str, Any]] = {}  # lock → the accepted attempt that holds it
    fences: set[tuple[str, int]] = set()
    for effect in evidence.effects:
        word, _, name = effect["word"].partition(" ")
        if word not in ("in", "out"):
            continue
        holder = holders.get(name)
        if word == "in":
            job, fence = effect["job"], effect["fence"]
            if (name, fence) in fences:
                yield f"{job}: the fence {fence} of the lock {name} was given twice"
            fences.add((name, fence))
            if holder is not None and fence > holder["fence"]:
                yield f"{job}: holds the lock {name} while {holder['job']} holds it"
            if accepted.get(job) == effect["stamp"]:
                holders[name] = effect
        elif holder is not None and holder["fence"] == effect["fence"]:
            del holders[name]


def concurrency_keys(evidence: Evidence) -> Iterator[str]:
    """No more attempts of a concurrency key run at once than its limit allows."""
    changes: dict[tuple[str, int], list[tuple[int, int, str]]] = defaultdict(list)
    for log in evidence.submissions:
        if log.concurrency_key is not None:
            for id in set(log.ids) & evidence.records.keys():
                for line in attempts(evidence.records[id]):
                    # A Redis that came back older may start another job of the key meanwhile.
                    if evidence.may_be_lost(line.began / 1e6, line.ended / 1e6):
                        continue
                    start = line.began + STAMP_LEAD_MICROSECONDS
                    changes[log.concurrency_key] += [(start, 1, id), (line.ended, -1, id)]
    for (key, limit), turns in changes.items():
        running = 0
        for _, change, id in sorted(turns, key=lambda turn: turn[:2]):
            running += change
            if running > limit:
                yield f"{id}: {running} jobs of the key {key} ran at once, the limit is {limit}"


def applied_once(evidence: Evidence) -> Iterator[str]:
    """SQL work is applied exactly once if its job succeeded, and at most once otherwise."""
    rows = Counter(evidence.applied)
    lost = evidence.lost_jobs()
    for log in evidence.submissions:
        if log.task == "sql.execute":
            count = rows.pop(log.key, 0)
            states = {evidence.records[id]["state"] for id in log.ids if id in evidence.records}
            # A lost job may have been submitted, and applied, a second time.
            allowed = 1 + len(lost.intersection(log.ids))
            if count > allowed or (count == 0 and "succeeded" in states):
                yield f"{log.key}: {states}, applied {count} times"
    for key in rows:
        yield f"{key}: applied, and no client submitted it"


def streams(evidence: Evidence) -> Iterator[str]:
    """A stream is in order, without repeats, complete for the accepted attempt, and ends."""
    for log in evidence.submissions:
        end = log.finals[-1].answered if log.finals else log.answered
        if not log.entry_ids or evidence.may_be_lost(log.requested, end):
            continue
        if not all(before < after for before, after in pairwise(log.entry_ids)):
            yield f"{log.key}: the stream's ids do not grow"
        if any(before[0] > after[0] for before, after in pairwise(log.output)):
            yield f"{log.key}: output of an earlier attempt after that of a later one"
        if not log.stream_ended:
            yield f"{log.key}: the stream never ended"
        record = evidence.records.get(log.ids[0]) if log.ids else None
        if record is None or record["state"] != "succeeded":
            continue
        accepted = [number for attempt, number in log.output if attempt == int(record["attempt"])]
        # A job that was handed back starts again under the same number: its last run counts.
        if accepted[-log.count :] != list(range(log.count)):
            yield f"{log.key}: {len(accepted)} items of {log.count} came, or not in order"
