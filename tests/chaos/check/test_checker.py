"""Every rule of the checker: it accepts a good run, and says what is wrong with each bad one."""

from typing import Any

import pytest

from tests.chaos.check.checker import check
from tests.chaos.check.evidence import Evidence, Transition, View, summary
from tests.chaos.check.good_run import (
    START,
    Change,
    added,
    both,
    changed,
    effect,
    good_run,
    line,
    lost,
    record,
    removed,
    seen,
    stamp,
)

OTHER = View("failed", '"other"', START + 5, START + 6)
WITHOUT_FAULT = "lost its worker without a fault"


def event(state: str, seconds: float) -> Change:
    return added("transitions", Transition("slow", state, stamp(seconds), 2))


def by(id: str) -> Any:
    return lambda item: item["job"] == id


ENDS: dict[str, tuple[Change, str]] = {
    "lost": (lost("sql"), "sql (sql.execute): accepted and lost"),
    "404": (seen("k-sql", not_found=True), "k-sql: accepted, and later unknown"),
    "not final": (changed("slow", state="running"), "slow (chaos.slow): still running"),
    "refused": (seen("k-sql", unexpected=["POST /v1/jobs: 500"]), "k-sql: POST /v1/jobs: 500"),
    "never accepted": (seen("k-sql", ids=[]), "k-sql: never accepted"),
    "two jobs of a key": (seen("k-first", ids=["first", "second"]), "k-first: several jobs"),
    "a job without a client": (
        removed("submissions", lambda log: log.key == "k-back"),
        "back: a job that no client submitted",
    ),
    "two ends": (event("succeeded", 9), "slow: ended 2 times"),
    "a state after the end": (event("queued", 9), "slow: queued after it was succeeded"),
    "a smaller stamp": (event("failed", 0.1), f"slow: stamp {stamp(0.1)} after"),
    "an end without event": (
        removed("transitions", lambda event: event.id == "sql"),
        "sql: succeeded, without an event",
    ),
    "an end unlike its event": (
        added(
            "records",
            ("sql", record("sql.execute", "failed", line(1, 1, 2, "failed"), error="{}")),
        ),
        "sql: the event says succeeded, the record failed",
    ),
    "two views": (
        seen("k-sql", finals=[OTHER]),
        "k-sql: seen final as ['failed', 'succeeded']",
    ),
    "two ETags": (
        seen("k-sql", finals=[OTHER._replace(state="succeeded", etag=etag) for etag in "xy"]),
        "with ['x', 'y']",
    ),
}

ATTEMPTS: dict[str, tuple[Change, str]] = {
    "attempts at once": (
        changed("slow", attempts=line(1, 1, 2.7, "worker_lost") + line(2, 2.5, 3, "succeeded")),
        "slow: attempt 2 began before attempt 1 ended",
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
    "none accepted": (
        changed("back", attempts=line(1, 1, 2, "failed")),
        "back: succeeded after ['failed']",
    ),
    "an unknown outcome": (
        changed("refused", attempts=line(1, 1, 2, "queued")),
        "refused: attempt 1 queued",
    ),
    "another attempt's result": (
        changed("slow", result=str(stamp(1))),
        "not of the accepted attempt",
    ),
    "a start during a pause": (
        changed("sql", attempts=line(1, 21, 21.5, "succeeded")),
        "sql: attempt 1 began while the queue was paused",
    ),
    "too many attempts": (changed("steps", max="0"), "steps: 1 attempts charged of 0"),
    "too many losses": (
        changed(
            "sql",
            attempts="".join(line(n, n, n + 0.5, "worker_lost") for n in range(1, 5)),
            state="failed",
        ),
        "sql: lost 4 workers",
    ),
    "cancelled without a request": (
        seen("k-cancelled", cancelled=False),
        "cancelled: cancelled, and no client asked for it",
    ),
    "an impossible success": (
        changed("refused", state="succeeded", attempts=line(1, 1, 2, "succeeded")),
        "refused (chaos.refuses): succeeded, which it cannot",
    ),
    "an impossible failure": (
        changed("refused", error='{"type":"timeout"}'),
        "refused (chaos.refuses): failed for",
    ),
    "given up early": (
        changed("sql", state="failed", attempts=line(1, 1, 2, "failed"), error="{}"),
        "sql (sql.execute): given up after 1 of 6 attempts",
    ),
    "lost before it began": (
        removed("effects", lambda item: item["word"] == "began"),
        "slow: attempt 1 never ran, and is charged as lost",
    ),
    "lost without a fault": (
        lambda evidence: setattr(evidence, "faults", [(START + 300, START + 301)]),
        WITHOUT_FAULT,
    ),
}

STORES: dict[str, tuple[Change, str]] = {
    "a waiting job": (added("members", ("later", 1)), "later still holds 1"),
    "a wrong count": (
        added("counts", ("default running", -1)),
        "-1 jobs are counted as default running",
    ),
    "a key without TTL": (
        added("keys", ("tandem:{a}:out:slow", -1)),
        "tandem:{a}:out:slow never expires",
    ),
    "a ledger behind": (
        added("ledger", ("slow", ("running", 1))),
        "the ledger says running at 1",
    ),
    "a row missing": (
        removed("ledger", lambda key: key == "slow"),
        "the ledger says nothing",
    ),
    "a row too many": (added("ledger", ("x", ("failed", 1))), "x: only in the ledger"),
    "an error in a log": (
        added("errors", "worker: [error] why"),
        "a log has an error: worker: [error] why",
    ),
}

TRACES: dict[str, tuple[Change, str]] = {
    "no effect": (removed("effects", by("back")), "back (chaos.thread): succeeded, and nothing"),
    "another attempt's effect": (
        removed("effects", lambda item: by("slow")(item) and item["stamp"] == stamp(2.5)),
        "slow (chaos.slow): the accepted attempt did nothing",
    ),
    "an unknown job's effect": (
        added("effects", effect("x", 1)),
        "x: did something, and is unknown",
    ),
    "a step run again": (
        added("effects", effect("steps", 3, "step 0")),
        f"steps: step 0 returned {stamp(1)}",
    ),
    "a step run twice": (
        added("effects", effect("steps", 1, "step 0")),
        "steps: an attempt ran step 0 more than once",
    ),
    "a step never run": (
        removed("effects", lambda item: item["word"] == "step 1"),
        "steps: step 1 returned",
    ),
    "two holders of a lock": (
        both(
            removed(
                "effects",
                lambda item: item["job"] in ("first", "second") and item["word"] != "done",
            ),
            added("effects", effect("first", 5, "in l", 7), effect("second", 5, "in l", 8)),
        ),
        "second: holds the lock l while first holds it",
    ),
    "a fence given twice": (
        added("effects", effect("slow", 1, "in l", 8)),
        "the fence 8 of the lock l was given twice",
    ),
    "two holders of a concurrency key": (
        changed("other", attempts=line(1, 8.5, 10, "succeeded"), result=str(stamp(8.5))),
        "2 jobs of the key key ran at once, the limit is 1",
    ),
    "applied twice": (added("applied", "k-sql"), "k-sql: {'succeeded'}, applied 2 times"),
    "not applied": (removed("applied", bool), "k-sql: {'succeeded'}, applied 0 times"),
    "applied without a client": (
        added("applied", "x"),
        "x: applied, and no client submitted it",
    ),
    "a repeated entry": (
        seen("k-stream", entry_ids=["a", "b", "b"]),
        "k-stream: the stream's ids do not grow",
    ),
    "an earlier attempt's output": (
        seen("k-stream", output=[(2, 0), (1, 0), (1, 1)]),
        "output of an earlier attempt",
    ),
    "a stream without end": (
        seen("k-stream", stream_ended=False),
        "k-stream: the stream never ended",
    ),
    "a stream with a gap": (
        seen("k-stream", output=[(1, 1)]),
        "k-stream: 1 items of 2 came",
    ),
}

BAD_RUNS = {**ENDS, **ATTEMPTS, **STORES, **TRACES}


def test_a_good_run_breaks_no_promise() -> None:
    assert check(good_run()) == []
    counted = {"succeeded": 9, "failed": 2, "worker_lost": 1, "released": 1, "cancelled": 1}
    assert summary(good_run())["attempts"] == counted


@pytest.mark.parametrize(("change", "sentence"), BAD_RUNS.values(), ids=BAD_RUNS)
def test_a_broken_promise_is_reported(change: Change, sentence: str) -> None:
    evidence = good_run()
    change(evidence)
    broken = check(evidence)
    assert any(sentence in one for one in broken), broken


def test_a_zombie_may_believe_that_it_holds_a_lock() -> None:
    """Its fence is smaller, and its attempt is not accepted."""
    evidence = good_run()
    held = [item for item in evidence.effects if item["word"] in ("in l", "out l")]
    others = [item for item in evidence.effects if item not in held]
    zombie = (effect("slow", 1, "in l", 6), effect("slow", 1, "out l", 6))
    evidence.effects = [*others, zombie[0], *held, zombie[1]]
    assert check(evidence) == []


@pytest.mark.parametrize(
    ("crash", "forgiven"),
    [(2.9, True), (0.95, True), (3.1, False), (0.8, False)],
    ids=["within two seconds", "during the request", "later", "earlier"],
)
def test_a_crash_may_lose_only_what_was_accepted_just_before(
    crash: float, *, forgiven: bool
) -> None:
    evidence = good_run()
    both(lost("refused"), seen("k-refused", not_found=True))(evidence)
    evidence.crashes = [START + crash]
    assert check(evidence), "an API that lives on submits the job again"
    evidence.deaths = [(START + crash, START + crash + 1)]
    broken = check(evidence)
    assert bool(broken) is not forgiven, broken
    assert summary(evidence)["lost by a crash of Redis"] == forgiven


def test_an_end_that_a_crash_has_lost_may_later_be_another_one() -> None:
    evidence: Evidence = good_run()
    later = OTHER._replace(state="succeeded", requested=START + 9.0, answered=START + 9.0)
    seen("k-sql", finals=[OTHER, later])(evidence)
    assert any("seen final" in sentence for sentence in check(evidence))
    evidence.crashes = [START + 7.5]
    assert check(evidence), "a worker that lives on writes the end again"
    evidence.deaths = [(START + 8, START + 9)]
    assert check(evidence) == []
