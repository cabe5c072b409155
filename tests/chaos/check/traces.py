"""What must hold of that which jobs leave behind: effects, results of steps, fences of locks, rows, streams."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import msgspec

from tests.chaos.check.evidence import Evidence, attempts

# µs by which a record's stamps may be ahead of the clock, after several transitions at once
MOMENT = 1000


def effects(evidence: Evidence) -> Iterator[str]:
    """What a succeeded job says was done was done, by the accepted attempt; and nobody unknown did anything."""
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
    known = {id for told in evidence.told for id in told.ids}
    for id in {effect["job"] for effect in evidence.effects} - evidence.records.keys() - known:
        yield f"{id}: did something, and is unknown"


def steps(evidence: Evidence) -> Iterator[str]:
    """A step that has returned is not done again: its result is that of the last attempt that did it."""
    runs: dict[tuple[str, int], list[int]] = defaultdict(list)
    for effect in evidence.effects:
        if effect["word"].startswith("step "):
            runs[effect["job"], int(effect["word"].removeprefix("step "))].append(effect["stamp"])
    for (id, number), stamps in runs.items():
        if len(set(stamps)) < len(stamps):
            yield f"{id}: an attempt did step {number} more than once"
    for id, record in evidence.records.items():
        if record["task"] == "chaos.steps" and record["state"] == "succeeded":
            for number, stamp in enumerate(msgspec.json.decode(record["result"])):
                if stamp != max(runs[id, number], default=0):
                    yield f"{id}: step {number} says {stamp}, and was done by {sorted(runs[id, number])}"


def locks(evidence: Evidence) -> Iterator[str]:
    """While an attempt that was accepted holds a lock nobody takes it after it; and no two holders have one fence."""
    ends = {
        id: attempts(record)[-1].began
        for id, record in evidence.records.items()
        if record["state"] == "succeeded"
    }
    inside: dict[str, Mapping[str, Any]] = {}  # the holder whose attempt counts, by lock
    fences: set[tuple[str, int]] = set()
    for effect in evidence.effects:
        word, _, name = effect["word"].partition(" ")
        if word not in ("in", "out"):
            continue
        holder = inside.get(name)
        if word == "in":
            if (name, effect["fence"]) in fences:
                yield f"{effect['job']}: the fence {effect['fence']} of the lock {name} was given twice"
            fences.add((name, effect["fence"]))
            if holder is not None and effect["fence"] > holder["fence"]:
                yield f"{effect['job']}: holds the lock {name} as {holder['job']} does"
            if ends.get(effect["job"]) == effect["stamp"]:
                inside[name] = effect
        elif holder is not None and holder["fence"] == effect["fence"]:
            del inside[name]


def holders(evidence: Evidence) -> Iterator[str]:
    """No more attempts of a concurrency key run at once than its limit allows."""
    spans: dict[tuple[str, int], list[tuple[int, int, str]]] = defaultdict(list)
    for told in evidence.told:
        if told.held is not None:
            for id in set(told.ids) & evidence.records.keys():
                for one in attempts(evidence.records[id]):
                    spans[told.held] += [(one.began + MOMENT, 1, id), (one.ended, -1, id)]
    for (key, limit), turns in spans.items():
        running = 0
        for _, by, id in sorted(turns, key=lambda turn: turn[:2]):
            running += by
            if running > limit:
                yield f"{id}: {running} jobs of the key {key} ran at once, {limit} may"


def applied(evidence: Evidence) -> Iterator[str]:
    """SQL work is there once if its job succeeded, and at most once if not."""
    rows = Counter(evidence.applied)
    forgiven = evidence.forgiven()
    for told in evidence.told:
        if told.task == "sql.execute":
            count = rows.pop(told.key, 0)
            states = {evidence.records[id]["state"] for id in told.ids if id in evidence.records}
            most = 1 + len(
                forgiven.intersection(told.ids)
            )  # a job that was forgotten may have come a second time
            if count > most or (count == 0 and "succeeded" in states):
                yield f"{told.key}: {states}, applied {count} times"
    for key in rows:
        yield f"{key}: applied, and nobody asked for it"


def streams(evidence: Evidence) -> Iterator[str]:
    """A stream that was followed is in order, without repeats, whole for the accepted attempt, and has its end."""
    for told in evidence.told:
        end = told.finals[-1].answered if told.finals else told.answered
        if not told.places or evidence.forgotten(told.asked, end):
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
