"""Every rule of the checker: it is content with a good run, and says what is wrong with each bad one."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.check.checker import check
from tests.chaos.check.evidence import Event, Evidence, Told, View, summary

T = 1_800_000_000  # seconds since the epoch, when the run begins
US = 1_000_000


def line(number: int, began: float, ended: float, outcome: str, worker: str = "w") -> str:
    """One of a record's attempts; seconds from the begin."""
    return f"{number} {stamp(began)} {stamp(ended)} {outcome} {worker}\n"


def stamp(at: float) -> int:
    return T * US + round(at * US)


def record(task: str, state: str, *lines: str, **more: str) -> dict[str, str]:
    last = lines[-1].split() if lines else ["0", str(stamp(1)), str(stamp(1))]
    return {
        "task": task, "state": state, "v": last[2], "max": "6", "attempt": last[0], "attempts": "".join(lines), **more,
    }  # fmt: skip


def told(key: str, task: str, id: str, state: str = "", **more: Any) -> Told:
    """Accepted one second after the begin, and seen final (if so) at the fourth."""
    finals = [View(state, f'"{id}"', T + 3.5, T + 4)] if state else []
    return Told(key, task, [id], T + 0.9, T + 1, finals, **more)


def effect(id: str, at: float, word: str = "done", fence: int = 0) -> dict[str, Any]:
    return {"job": id, "key": id, "attempt": 1, "stamp": stamp(at), "word": word, "fence": fence}


def good() -> Evidence:
    """One job of each kind, after a fault in the second second and a pause from the 20th to the 22nd."""
    records = {
        "slow": record(
            "chaos.slow", "succeeded", line(1, 1, 2, "worker_lost"), line(2, 2.5, 3, "succeeded"),
            result=str(stamp(2.5)),
        ),
        "back": record("chaos.thread", "succeeded", line(1, 1, 2, "released"), line(1, 2.5, 3, "succeeded")),
        "refused": record("chaos.refuses", "failed", line(1, 1, 2, "failed"), error='{"type":"refused"}'),
        "cancelled": record("chaos.slow", "cancelled", line(1, 1, 2, "cancelled")),
        "sql": record("sql.execute", "succeeded", line(1, 1, 2, "succeeded")),
        "stream": record("chaos.stream", "succeeded", line(1, 1, 2, "succeeded")),
        "steps": record(
            "chaos.steps", "succeeded", line(1, 1, 2, "failed"), line(2, 3, 4, "succeeded"),
            result=f"[{stamp(1)},{stamp(3)}]",
        ),
        "first": record("chaos.locked", "succeeded", line(1, 5, 6, "succeeded"), result=str(stamp(5))),
        "second": record("chaos.locked", "succeeded", line(1, 5, 7, "succeeded"), result=str(stamp(5))),
        "keyed": record("chaos.slow", "succeeded", line(1, 8, 9, "succeeded"), result=str(stamp(8))),
        "other": record("chaos.slow", "succeeded", line(1, 9, 10, "succeeded"), result=str(stamp(9))),
    }  # fmt: skip
    key = ("key", 1)
    return Evidence(
        told=[
            told("k-slow", "chaos.slow", "slow", "succeeded"),
            told("k-back", "chaos.thread", "back", "succeeded"),
            told("k-refused", "chaos.refuses", "refused", "failed"),
            told("k-cancelled", "chaos.slow", "cancelled", "cancelled", cancelled=True),
            told("k-sql", "sql.execute", "sql"),
            told(
                "k-stream", "chaos.stream", "stream", "succeeded",
                count=2, places=["a", "b", "c"], output=[(1, 0), (1, 1)], ended=True,
            ),
            told("k-steps", "chaos.steps", "steps"),
            told("k-first", "chaos.locked", "first"),
            told("k-second", "chaos.locked", "second"),
            told("k-keyed", "chaos.slow", "keyed", held=key),
            told("k-other", "chaos.slow", "other", held=key),
        ],
        effects=[
            effect("slow", 1), effect("slow", 2.5), effect("back", 0), effect("refused", 1, "refused"),
            effect("stream", 1), effect("steps", 1, "step 0"), effect("steps", 3, "step 1"), effect("steps", 3),
            effect("first", 5, "in l", 7), effect("first", 5, "out l", 7), effect("first", 5),
            effect("second", 5, "in l", 8), effect("second", 5, "out l", 8), effect("second", 5),
            effect("keyed", 8), effect("other", 9),
        ],
        events=[
            *(Event(id, "running", stamp(0.5), 1) for id in records),
            *(Event(id, one["state"], int(one["v"]), 1) for id, one in records.items()),
        ],
        records=records,
        keys={"tandem:{a}:job:slow": 1000, "tandem:{a}:clock": -1},
        members={"later": 0},
        counts={"default running": 0},
        applied=["k-sql"],
        ledger={id: (one["state"], int(one["v"])) for id, one in records.items()},
        faults=[(T + 1.5, T + 1.6)],
        pauses=[(T + 20, T + 22)],
    )  # fmt: skip


def changed(id: str, **fields: str) -> Callable[[Evidence], None]:
    """Redis has the record otherwise, as the events and the ledger have it too."""

    def change(evidence: Evidence) -> None:
        evidence.records = {**evidence.records, id: {**evidence.records[id], **fields}}
        one = evidence.records[id]
        evidence.events = [
            Event(id, one["state"], int(one["v"]), 1)
            if event.id == id and event.state != "running"
            else event
            for event in evidence.events
        ]
        evidence.ledger = {**evidence.ledger, id: (one["state"], int(one["v"]))}

    return change


def of(key: str, **fields: Any) -> Callable[[Evidence], None]:
    """A client was told otherwise."""

    def change(evidence: Evidence) -> None:
        (one,) = [one for one in evidence.told if one.key == key]
        for name, value in fields.items():
            setattr(one, name, value)

    return change


def more(name: str, *found: Any) -> Callable[[Evidence], None]:
    """There is more of something, or something else where it has a name."""

    def change(evidence: Evidence) -> None:
        before = getattr(evidence, name)
        setattr(
            evidence,
            name,
            {**before, **dict(found)} if isinstance(before, dict) else [*before, *found],
        )

    return change


def without(name: str, leave_out: Callable[[Any], bool]) -> Callable[[Evidence], None]:
    def change(evidence: Evidence) -> None:
        before = getattr(evidence, name)
        if isinstance(before, dict):
            setattr(
                evidence, name, {key: value for key, value in before.items() if not leave_out(key)}
            )
        else:
            setattr(evidence, name, [one for one in before if not leave_out(one)])

    return change


def both(*changes: Callable[[Evidence], None]) -> Callable[[Evidence], None]:
    def change(evidence: Evidence) -> None:
        for one in changes:
            one(evidence)

    return change


def lost(id: str) -> Callable[[Evidence], None]:
    """Nothing knows the job any more, but who submitted it."""
    return both(
        without("records", lambda one: one == id),
        without("ledger", lambda one: one == id),
        without("events", lambda one: one.id == id),
    )


OTHER = View("failed", '"other"', T + 5, T + 6)

BAD = {
    "lost": (lost("sql"), "sql (sql.execute): accepted and lost"),
    "404": (of("k-sql", gone=True), "k-sql: accepted, and later unknown"),
    "not final": (changed("slow", state="running"), "slow (chaos.slow): still running"),
    "refused": (of("k-sql", wrong=["POST /v1/jobs: 500"]), "k-sql: POST /v1/jobs: 500"),
    "never accepted": (of("k-sql", ids=[]), "k-sql: never accepted"),
    "two jobs of a key": (of("k-first", ids=["first", "second"]), "k-first: several jobs"),
    "a job of nobody": (without("told", lambda one: one.key == "k-back"), "back: a job that no client has"),
    "two ends": (more("events", Event("slow", "succeeded", stamp(9), 2)), "slow: ended 2 times"),
    "life after the end": (more("events", Event("slow", "queued", stamp(9), 2)), "slow: queued after it was succeeded"),
    "a stamp that falls": (more("events", Event("slow", "failed", stamp(0.1), 2)), "after"),
    "an end without event": (without("events", lambda one: one.id == "sql"), "sql: succeeded, and no event says so"),
    "another end than said": (
        more("records", ("sql", record("sql.execute", "failed", line(1, 1, 2, "failed"), error="{}"))),
        "sql: the event says succeeded, the record failed",
    ),
    "seen otherwise": (of("k-sql", finals=[OTHER]), "k-sql: seen final as ['failed', 'succeeded']"),
    "seen with two tags": (
        of("k-sql", finals=[OTHER._replace(state="succeeded", tag=tag) for tag in "xy"]), "with ['x', 'y']",
    ),
    "attempts at once": (
        changed("slow", attempts=line(1, 1, 2.7, "worker_lost") + line(2, 2.5, 3, "succeeded")),
        "slow: attempt 2 began before attempt 1 had ended",
    ),
    "an attempt left out": (
        changed("slow", attempts=line(1, 1, 2, "worker_lost") + line(3, 2.5, 3, "succeeded")),
        "slow: attempt 3 after attempt 1",
    ),
    "a charged release": (
        changed("back", attempts=line(1, 1, 2, "released") + line(2, 2.5, 3, "succeeded")),
        "back: attempt 2 after attempt 1, released",
    ),
    "two accepted": (
        changed("slow", attempts=line(1, 1, 2, "succeeded") + line(2, 2.5, 3, "succeeded")),
        "slow: succeeded after ['succeeded', 'succeeded']",
    ),
    "none accepted": (changed("back", attempts=line(1, 1, 2, "failed")), "back: succeeded after ['failed']"),
    "no outcome": (changed("refused", attempts=line(1, 1, 2, "queued")), "refused: attempt 1 queued"),
    "a result of another": (changed("slow", result=str(stamp(1))), "not of the accepted attempt"),
    "begun in a pause": (
        changed("sql", attempts=line(1, 21, 21.5, "succeeded")), "sql: attempt 1 began while the queue was paused",
    ),
    "too many attempts": (changed("steps", max="0"), "steps: 1 attempts charged of 0"),
    "too many losses": (
        changed("sql", attempts="".join(line(n, n, n + 0.5, "worker_lost") for n in range(1, 5)), state="failed"),
        "sql: lost 4 workers",
    ),
    "cancelled by nobody": (of("k-cancelled", cancelled=False), "cancelled: cancelled, and nobody asked for it"),
    "cannot succeed": (
        changed("refused", state="succeeded", attempts=line(1, 1, 2, "succeeded")), "refused (chaos.refuses): succe",
    ),
    "another reason": (changed("refused", error='{"type":"timeout"}'), "refused (chaos.refuses): failed for"),
    "given up early": (
        changed("sql", state="failed", attempts=line(1, 1, 2, "failed"), error="{}"),
        "sql (sql.execute): given up after 1 of 6 attempts",
    ),
    "lost for nothing": (more("faults"), "lost its worker, and nothing was hurt"),
    "somebody waits": (more("members", ("later", 1)), "later still holds 1"),
    "miscounted": (more("counts", ("default running", -1)), "-1 jobs are counted as default running"),
    "for ever": (more("keys", ("tandem:{a}:out:slow", -1)), "tandem:{a}:out:slow has no end"),
    "the ledger is behind": (more("ledger", ("slow", ("running", 1))), "the ledger says running at 1"),
    "the ledger has no row": (without("ledger", lambda one: one == "slow"), "the ledger says nothing"),
    "the ledger alone": (more("ledger", ("x", ("failed", 1))), "x: in the ledger alone"),
    "nothing done": (without("effects", lambda one: one["job"] == "back"), "back (chaos.thread): succeeded, and"),
    "done by another": (
        without("effects", lambda one: one["job"] == "slow" and one["stamp"] == stamp(2.5)),
        "slow (chaos.slow): the accepted attempt did nothing",
    ),
    "done by a stranger": (more("effects", effect("x", 1)), "x: did something, and is unknown"),
    "a step done again": (more("effects", effect("steps", 3, "step 0")), f"steps: step 0 says {stamp(1)}"),
    "a step twice": (more("effects", effect("steps", 1, "step 0")), "steps: an attempt did step 0 more than once"),
    "a step of nobody": (without("effects", lambda one: one["word"] == "step 1"), "steps: step 1 says"),
    "two in a lock": (
        both(
            without("effects", lambda one: one["job"] in ("first", "second") and one["word"] != "done"),
            more("effects", effect("first", 5, "in l", 7), effect("second", 5, "in l", 8)),
        ),
        "second: holds the lock l as first does",
    ),
    "one fence twice": (more("effects", effect("slow", 1, "in l", 8)), "the fence 8 of the lock l was given twice"),
    "a key held twice": (
        changed("other", attempts=line(1, 8.5, 10, "succeeded"), result=str(stamp(8.5))),
        "2 jobs of the key key ran at once, 1 may",
    ),
    "applied twice": (more("applied", "k-sql"), "k-sql: {'succeeded'}, applied 2 times"),
    "not applied": (without("applied", bool), "k-sql: {'succeeded'}, applied 0 times"),
    "applied by nobody": (more("applied", "x"), "x: applied, and nobody asked for it"),
    "a stream with a repeat": (of("k-stream", places=["a", "b", "b"]), "k-stream: the stream's ids do not grow"),
    "an earlier attempt's output": (of("k-stream", output=[(2, 0), (1, 0), (1, 1)]), "output of an earlier attempt"),
    "a stream without end": (of("k-stream", ended=False), "k-stream: the stream never ended"),
    "a stream with a gap": (of("k-stream", output=[(1, 1)]), "k-stream: 1 items of 2 came"),
    "a log": (more("logged", "worker: [error] why"), "a log says: worker: [error] why"),
}  # fmt: skip


def test_a_good_run_breaks_no_promise() -> None:
    assert check(good()) == []
    assert summary(good())["attempts"] == {
        "succeeded": 9, "failed": 2, "worker_lost": 1, "released": 1, "cancelled": 1,
    }  # fmt: skip


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD)
def test_a_broken_promise_is_told(change: Callable[[Evidence], None], said: str) -> None:
    evidence = good()
    change(evidence)
    if said == BAD["lost for nothing"][1]:
        evidence.faults = [(T + 300, T + 301)]
    assert [sentence for sentence in check(evidence) if said in sentence], check(evidence)


def test_of_a_zombie_in_a_lock_nothing_is_said() -> None:
    """Whoever lost its attempt may go on for a while: its fence is smaller, and it is not accepted."""
    evidence = good()
    held = [one for one in evidence.effects if one["word"] in ("in l", "out l")]
    rest = [one for one in evidence.effects if one not in held]
    evidence.effects = [*rest, effect("slow", 1, "in l", 6), *held, effect("slow", 1, "out l", 6)]
    assert check(evidence) == []


@pytest.mark.parametrize(
    ("crash", "forgiven"),
    [(2.9, True), (0.95, True), (3.1, False), (0.8, False)],
    ids=["within two seconds", "while it was asked", "later", "earlier"],
)
def test_only_what_was_accepted_just_before_a_crash_may_be_forgotten(
    crash: float, *, forgiven: bool
) -> None:
    evidence = good()
    both(lost("refused"), of("k-refused", gone=True))(evidence)
    evidence.crashes = [T + crash]
    broken = check(evidence)
    assert bool(broken) is not forgiven, broken
    assert summary(evidence)["forgotten by a crash of Redis"] == forgiven


def test_an_end_that_a_crash_took_back_may_be_seen_again_otherwise() -> None:
    evidence = good()
    of("k-sql", finals=[OTHER, OTHER._replace(state="succeeded", asked=T + 9.0, answered=T + 9.0)])(
        evidence
    )
    assert any("seen final" in sentence for sentence in check(evidence))
    evidence.crashes = [T + 7.5]
    assert check(evidence) == []
