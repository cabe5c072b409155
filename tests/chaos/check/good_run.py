"""A run that keeps every promise, and ways to break it: for the tests of the checker."""

from collections.abc import Callable
from typing import Any

from tests.chaos.check.evidence import Evidence, SubmissionLog, Transition, View

START = 1_800_000_000  # of the run, in seconds since the epoch
MICROSECONDS = 1_000_000

Change = Callable[[Evidence], None]
Record = dict[str, str]


def stamp(seconds: float) -> int:
    """The stamp of that moment; all moments here are seconds after START."""
    return START * MICROSECONDS + round(seconds * MICROSECONDS)


def line(number: int, began: float, ended: float, outcome: str) -> str:
    """One of a record's attempts."""
    return f"{number} {stamp(began)} {stamp(ended)} {outcome} w\n"


def record(task: str, state: str, *lines: str, **fields: str) -> Record:
    number, _, ended, *_ = lines[-1].split()
    attempts = {"v": ended, "max": "6", "attempt": number, "attempts": "".join(lines)}
    return {"task": task, "state": state, **attempts, **fields}


def succeeded(task: str, began: float, ended: float, **fields: str) -> Record:
    """A job that succeeded with its first attempt."""
    return record(task, "succeeded", line(1, began, ended, "succeeded"), **fields)


def submission(key: str, task: str, id: str, state: str = "", **fields: Any) -> SubmissionLog:
    """Accepted after one second, and seen in its final state after four, if `state` is given."""
    finals = [View(state, f'"{id}"', START + 3.5, START + 4)] if state else []
    return SubmissionLog(key, task, [id], START + 0.9, START + 1, finals, **fields)


def effect(id: str, seconds: float, word: str = "done", fence: int = 0) -> dict[str, Any]:
    when = stamp(seconds)
    return {"job": id, "key": id, "attempt": 1, "stamp": when, "word": word, "fence": fence}


def good_run() -> Evidence:
    """One job of each kind, after a fault at 1.5 s and a pause from 20 s to 22 s."""
    records = _records()
    ends = {id: (record["state"], int(record["v"])) for id, record in records.items()}
    return Evidence(
        submissions=_submissions(),
        effects=_effects(),
        transitions=[
            *(Transition(id, "running", stamp(0.5), 1) for id in records),
            *(Transition(id, *end, 1) for id, end in ends.items()),
        ],
        records=records,
        keys={"tandem:{a}:job:slow": 1000, "tandem:{a}:clock": -1},
        members={"later": 0},
        counts={"default running": 0},
        applied=["k-sql"],
        ledger=ends,
        faults=[(START + 1.5, START + 1.6)],
        pauses=[(START + 20, START + 22)],
    )


def _records() -> dict[str, Record]:
    lost = (line(1, 1, 2, "worker_lost"), line(2, 2.5, 3, "succeeded"))
    released = (line(1, 1, 2, "released"), line(1, 2.5, 3, "succeeded"))
    failed = line(1, 1, 2, "failed")
    retried = (failed, line(2, 3, 4, "succeeded"))
    steps = f"[{stamp(1)},{stamp(3)}]"
    return {
        "slow": record("chaos.slow", "succeeded", *lost, result=str(stamp(2.5))),
        "back": record("chaos.thread", "succeeded", *released),
        "refused": record("chaos.refuses", "failed", failed, error='{"type":"refused"}'),
        "cancelled": record("chaos.slow", "cancelled", line(1, 1, 2, "cancelled")),
        "sql": succeeded("sql.execute", 1, 2),
        "stream": succeeded("chaos.stream", 1, 2),
        "steps": record("chaos.steps", "succeeded", *retried, result=steps),
        "first": succeeded("chaos.locked", 5, 6, result=str(stamp(5))),
        "second": succeeded("chaos.locked", 5, 7, result=str(stamp(5))),
        "keyed": succeeded("chaos.slow", 8, 9, result=str(stamp(8))),
        "other": succeeded("chaos.slow", 9, 10, result=str(stamp(9))),
    }


def _submissions() -> list[SubmissionLog]:
    stream: dict[str, Any] = {"count": 2, "entry_ids": ["a", "b", "c"], "output": [(1, 0), (1, 1)]}
    stream["stream_ended"] = True
    return [
        submission("k-slow", "chaos.slow", "slow", "succeeded"),
        submission("k-back", "chaos.thread", "back", "succeeded"),
        submission("k-refused", "chaos.refuses", "refused", "failed"),
        submission("k-cancelled", "chaos.slow", "cancelled", "cancelled", cancelled=True),
        submission("k-sql", "sql.execute", "sql"),
        submission("k-stream", "chaos.stream", "stream", "succeeded", **stream),
        submission("k-steps", "chaos.steps", "steps"),
        submission("k-first", "chaos.locked", "first"),
        submission("k-second", "chaos.locked", "second"),
        submission("k-keyed", "chaos.slow", "keyed", concurrency_key=("key", 1)),
        submission("k-other", "chaos.slow", "other", concurrency_key=("key", 1)),
    ]


def _effects() -> list[dict[str, Any]]:
    return [
        *(effect("slow", 1, "began"), effect("slow", 2.5, "began")),
        *(effect("slow", 1), effect("slow", 2.5), effect("back", 0)),
        *(effect("refused", 1, "refused"), effect("stream", 1)),
        *(effect("steps", 1, "step 0"), effect("steps", 3, "step 1"), effect("steps", 3)),
        *(effect("first", 5, "in l", 7), effect("first", 5, "out l", 7), effect("first", 5)),
        *(effect("second", 5, "in l", 8), effect("second", 5, "out l", 8), effect("second", 5)),
        *(effect("keyed", 8), effect("other", 9)),
    ]


def changed(id: str, **fields: str) -> Change:
    """Change a record, and with it the events and the ledger."""

    def change(evidence: Evidence) -> None:
        new = {**evidence.records[id], **fields}
        end = (new["state"], int(new["v"]))
        evidence.records = {**evidence.records, id: new}
        evidence.transitions = [
            Transition(id, *end, 1) if event.id == id and event.state != "running" else event
            for event in evidence.transitions
        ]
        evidence.ledger = {**evidence.ledger, id: end}

    return change


def seen(key: str, **fields: Any) -> Change:
    """Change what the client of this submission has seen."""

    def change(evidence: Evidence) -> None:
        (log,) = [log for log in evidence.submissions if log.key == key]
        for name, value in fields.items():
            setattr(log, name, value)

    return change


def added(name: str, *items: Any) -> Change:
    """Add items to a list of the evidence, or pairs to one of its mappings."""

    def change(evidence: Evidence) -> None:
        before = getattr(evidence, name)
        after = {**before, **dict(items)} if isinstance(before, dict) else [*before, *items]
        setattr(evidence, name, after)

    return change


def removed(name: str, matches: Callable[[Any], bool]) -> Change:
    """Remove the matching items of a list of the evidence, or keys of one of its mappings."""

    def change(evidence: Evidence) -> None:
        before = getattr(evidence, name)
        if isinstance(before, dict):
            after: Any = {key: value for key, value in before.items() if not matches(key)}
        else:
            after = [item for item in before if not matches(item)]
        setattr(evidence, name, after)

    return change


def both(*changes: Change) -> Change:
    def change(evidence: Evidence) -> None:
        for single in changes:
            single(evidence)

    return change


def lost(id: str) -> Change:
    """Remove a job everywhere except from its client's log."""
    return both(
        removed("records", lambda key: key == id),
        removed("ledger", lambda key: key == id),
        removed("transitions", lambda event: event.id == id),
    )
