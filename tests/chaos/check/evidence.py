"""What is known of a run once it is quiet: what clients saw, tasks did and stores hold."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Span = tuple[float, float]  # begin and end, in seconds since the epoch

AOF_LOSS_SECONDS = 2.0  # what a Redis with `appendfsync everysec` may forget when it crashes
# How long before and after a crash of Redis the end of a process makes it forget for good: what
# the process has to repeat is recent, and is repeated as soon as Redis answers.
REPEAT_SECONDS = 10.0


class Silence(NamedTuple):
    """A time in which a worker may not have received what it claimed; seconds since the epoch."""

    begin: float
    end: float
    pid: int  # of the worker; 0: any


class View(NamedTuple):
    """A final state as a client saw it; times are in seconds since the epoch."""

    state: str
    etag: str  # empty where none was sent
    requested: float
    answered: float


@dataclass
class SubmissionLog:
    """What a client knows about one of its submissions."""

    key: str
    task: str
    ids: list[str] = field(default_factory=list)  # of every 202: all equal unless a promise broke
    requested: float = 0.0  # of the first accepted request
    answered: float = 0.0
    finals: list[View] = field(default_factory=list)
    not_found: bool = False  # answered 404 after a 202
    cancelled: bool = False
    concurrency_key: tuple[str, int] | None = None  # the key and its limit
    count: int = 0  # items that its stream should have
    entry_ids: list[str] = field(default_factory=list)  # of the stream, in order of arrival
    output: list[tuple[int, int]] = field(default_factory=list)  # (attempt, number) of each item
    stream_ended: bool = False
    unexpected: list[str] = field(default_factory=list)  # answers that the API should not give

    def accepted(self, id: str, requested: float, answered: float) -> None:
        if not self.ids:
            self.requested, self.answered = requested, answered
        self.ids.append(id)


class Transition(NamedTuple):
    """One event of the queue."""

    id: str
    state: str
    stamp: int
    attempt: int


@dataclass
class Evidence:
    """Everything that the checker looks at, as plain data."""

    submissions: Sequence[SubmissionLog] = ()
    effects: Sequence[Mapping[str, Any]] = ()  # the lines that tasks have written
    transitions: Sequence[Transition] = ()
    records: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by job id
    keys: Mapping[str, int] = field(default_factory=dict)  # TTL in ms of each key, -1 without one
    members: Mapping[str, int] = field(default_factory=dict)  # sizes of the places of open jobs
    counts: Mapping[str, int] = field(default_factory=dict)  # of jobs, by queue and state
    applied: Sequence[str] = ()  # the key of each row that SQL jobs have inserted
    ledger: Mapping[str, tuple[str, int]] = field(default_factory=dict)  # (state, stamp) by job id
    faults: Sequence[Span] = ()
    pauses: Sequence[Span] = ()  # from the answer to the pause until the request to resume
    crashes: Sequence[float] = ()  # of a Redis that may lose its last AOF_LOSS_SECONDS
    deaths: Sequence[Span] = ()  # of APIs and workers
    silences: Sequence[Silence] = ()
    errors: Sequence[str] = ()  # log lines that no fault explains

    def may_be_lost(self, requested: float, answered: float) -> bool:
        """Whether a crash of Redis may have lost what was written between these times."""
        return any(requested <= crash <= answered + AOF_LOSS_SECONDS for crash in self.crashes)

    def may_be_forgotten(self, requested: float, answered: float) -> bool:
        """Whether, besides, a process ended that would have repeated it."""
        return any(
            requested <= crash <= answered + AOF_LOSS_SECONDS
            and any(
                begin - REPEAT_SECONDS <= crash <= end + REPEAT_SECONDS
                for begin, end in self.deaths
            )
            for crash in self.crashes
        )

    def lost_jobs(self) -> set[str]:
        """Accepted jobs that a crash of Redis has lost, as it may."""
        return {
            id
            for log in self.submissions
            for id in log.ids
            if id not in self.records and self.may_be_forgotten(log.requested, log.answered)
        }


class AttemptLine:
    """One line of a record's attempts; times are stamps in µs."""

    def __init__(self, line: str) -> None:
        number, began, ended, self.outcome, self.worker = line.split(" ")
        self.number, self.began, self.ended = int(number), int(began), int(ended)


def attempts(record: Mapping[str, str]) -> list[AttemptLine]:
    return [AttemptLine(line) for line in record.get("attempts", "").splitlines()]


def summary(evidence: Evidence) -> dict[str, Any]:
    """The figures of the run."""
    records = evidence.records.values()
    outcomes = Counter(attempt.outcome for record in records for attempt in attempts(record))
    return {
        "jobs": len(evidence.records),
        "states": dict(Counter(record["state"] for record in records)),
        "attempts": dict(outcomes),
        "transitions": len(evidence.transitions),
        "effects": len(evidence.effects),
        "streams": sum(log.stream_ended for log in evidence.submissions),
        "rows in the ledger": len(evidence.ledger),
        "lost by a crash of Redis": len(evidence.lost_jobs()),
    }
