"""What is known of a run once all is quiet: what clients were told, what tasks did, what the stores hold."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

LOST = 2.0  # seconds before its crash that a Redis with `appendfsync everysec` may forget


class View(NamedTuple):
    """A final state as a client saw it, in an answer to what was asked at `asked`; both in seconds since the epoch."""

    state: str
    tag: str  # ETag, if it was given
    asked: float
    answered: float


@dataclass
class Told:
    """What a client knows of one submission of its own."""

    key: str
    task: str
    ids: list[str] = field(
        default_factory=list
    )  # of every acceptance: all the same, if all is well
    asked: float = 0.0  # when the request was made that was accepted first
    answered: float = 0.0
    finals: list[View] = field(default_factory=list)
    gone: bool = False  # answered 404, after it had been accepted
    cancelled: bool = False
    held: tuple[str, int] | None = None  # its concurrency key, and the limit
    count: int = 0  # items that a stream should have
    places: list[str] = field(default_factory=list)  # ids of the entries that a stream gave
    output: list[tuple[int, int]] = field(default_factory=list)  # (attempt, number) of its items
    ended: bool = False
    wrong: list[str] = field(default_factory=list)  # answers that should not have been

    def accepted(self, id: str, asked: float, answered: float) -> None:
        if not self.ids:
            self.asked, self.answered = asked, answered
        self.ids.append(id)


class Event(NamedTuple):
    """One transition."""

    id: str
    state: str
    stamp: int
    attempt: int


@dataclass
class Evidence:
    """`records`: Redis' hashes by job id; `keys`: each key that is left, with its TTL in ms (-1: none)."""

    told: Sequence[Told] = ()
    effects: Sequence[Mapping[str, Any]] = ()
    events: Sequence[Event] = ()
    records: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    keys: Mapping[str, int] = field(default_factory=dict)
    members: Mapping[str, int] = field(
        default_factory=dict
    )  # of the places in which jobs stand that are not final
    counts: Mapping[str, int] = field(default_factory=dict)  # of jobs by queue and state
    applied: Sequence[str] = ()  # keys, a row each
    ledger: Mapping[str, tuple[str, int]] = field(default_factory=dict)  # state and stamp by job id
    faults: Sequence[
        tuple[float, float]
    ] = ()  # when something was hurt, in seconds since the epoch
    pauses: Sequence[
        tuple[float, float]
    ] = ()  # when the queue was paused: from the answer to the next request
    crashes: Sequence[
        float
    ] = ()  # of a Redis that may forget what it was told in the last LOST seconds
    logged: Sequence[str] = ()  # lines of logs that no fault explains

    def forgotten(self, asked: float, answered: float) -> bool:
        """Whether what was written between these times may have been lost: by a crash, and no more than LOST before."""
        return any(asked <= crash <= answered + LOST for crash in self.crashes)

    def forgiven(self) -> set[str]:
        """Accepted jobs that are gone, and may be."""
        return {
            id
            for told in self.told
            for id in told.ids
            if id not in self.records and self.forgotten(told.asked, told.answered)
        }


class Attempt:
    """One line of a record's attempts."""

    def __init__(self, line: str) -> None:
        number, began, ended, self.outcome, self.worker = line.split(" ")
        self.number, self.began, self.ended = int(number), int(began), int(ended)


def attempts(record: Mapping[str, str]) -> list[Attempt]:
    return [Attempt(line) for line in record.get("attempts", "").splitlines()]


def summary(evidence: Evidence) -> dict[str, Any]:
    """Figures of the run."""
    outcomes = Counter(
        one.outcome for record in evidence.records.values() for one in attempts(record)
    )
    return {
        "jobs": len(evidence.records),
        "states": dict(Counter(record["state"] for record in evidence.records.values())),
        "attempts": dict(outcomes),
        "transitions": len(evidence.events),
        "effects": len(evidence.effects),
        "streams": sum(1 for told in evidence.told if told.ended),
        "rows in the ledger": len(evidence.ledger),
        "forgotten by a crash of Redis": len(evidence.forgiven()),
    }
