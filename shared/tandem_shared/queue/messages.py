"""What goes to the scripts and comes back from them, as values."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import msgspec

from tandem_shared.errors import Full, KeyReused
from tandem_shared.jobs.record import Submission
from tandem_shared.jobs.states import STATES, Outcome, State
from tandem_shared.queue.scripts import ENTRY, Arg

Refusal = KeyReused | Full  # why a job did not enter


class Submitted(NamedTuple):
    """The answer to a submission. `replayed`: the idempotency key was known, and `id` is the first job's."""

    id: str
    replayed: bool
    stamp: int
    state: State
    due: int  # ms since the epoch


class Claimed(NamedTuple):
    """A job as a worker gets it; `payload` and `options` are JSON, `due_ms` since the epoch when it could have run."""

    id: str
    token: str
    attempt: int
    max_attempts: int
    task: str
    tenant: str
    payload: bytes
    options: bytes
    due_ms: int


class Claim(NamedTuple):
    """The answer to a claim. `known` False: register first. `next_due` in seconds, None: nothing is put off."""

    known: bool
    more: bool
    next_due: float | None
    settled: int
    foreign: bool
    jobs: list[Claimed]


class Finish(NamedTuple):
    """How an attempt ended: `to` is the next state, `queued` hands the job back uncharged.

    `body` is the JSON of the result or of the failure, `delay` seconds until a retry, `files` JSON
    of what is published.
    """

    id: str
    token: str
    to: State
    outcome: Outcome
    body: bytes = b"null"
    delay: float = 0.0
    files: bytes = b""


class Report(NamedTuple):
    """What a running job says: `type` is progress, log or output; `body` JSON, one value a line for the latter two.

    `number` is 1 for the first report of an attempt, and grows by one: a repeated one is written
    once.
    """

    id: str
    token: str
    number: int
    type: str
    body: bytes


class Chunk(NamedTuple):
    """One entry of a job's output stream; its items share the stamp.

    `body` holds the items, one a line; `before` is the stamp of the entry before this one, 0 for
    the first.
    """

    stamp: int
    type: str
    attempt: int
    body: bytes
    before: int = 0

    @property
    def items(self) -> list[bytes]:
        return self.body.split(b"\n")

    @property
    def weight(self) -> int:
        """What it counts as in Redis, bytes."""
        return len(self.body) + ENTRY


class Segment(NamedTuple):
    """Entries that have left Redis for the file store: the stamps of the first and the last, and the object's bytes."""

    first: int
    last: int
    size: int


@dataclass(frozen=True)
class QueueStats:
    """Jobs of one queue by state, and how long its oldest due one has waited, in seconds."""

    name: str
    paused: bool = False
    waiting: int = 0
    scheduled: int = 0
    queued: int = 0
    running: int = 0
    retrying: int = 0
    oldest_age: float | None = None


@dataclass(frozen=True)
class WorkerInfo:
    """A live worker; times are seconds since the epoch."""

    id: str
    host: str
    pid: int
    queues: tuple[str, ...]
    concurrency: int
    version: str
    started_at: float
    last_seen: float = 0.0
    draining: bool = False
    running: tuple[str, ...] = ()


def submit_args(jobs: Sequence[Submission]) -> list[Arg]:
    """What enter.lua reads: the kinds of jobs, each once, and for each job its kind, id and payload."""
    kinds: dict[tuple[Arg, ...], int] = {}
    encoded: dict[int, bytes] = {}  # options by identity, since jobs without any have their task's
    values: list[Arg] = []
    for job in jobs:
        options = encoded.get(id(job.options))
        if options is None:
            options = encoded[id(job.options)] = msgspec.json.encode(job.options)
        values += (kinds.setdefault(_kind(job, options), len(kinds)), job.id, job.payload)
    return [len(kinds), *chain.from_iterable(kinds), *values]


def _kind(job: Submission, options: bytes) -> tuple[Arg, ...]:
    key = ""
    if job.idempotency_key is not None:
        key = hashlib.sha256(f"{job.tenant}\0{job.idempotency_key}".encode()).hexdigest()[:32]
    return (
        job.task, job.version, job.tenant, job.queue, job.priority, options, job.max_attempts,
        "" if job.delay is None else int(job.delay * 1000),
        "" if job.run_at is None else int(job.run_at * 1000),
        "" if job.expires_in is None else int(job.expires_in * 1000),
        job.concurrency_key or "", job.concurrency_limit if job.concurrency_key else "",
        key, job.fingerprint() if key else "",
    )  # fmt: skip


def submitted(reply: list[bytes], jobs: Sequence[Submission]) -> list[Submitted | Refusal]:
    """The answers in a reply of submit.lua to these jobs."""
    answers: list[Submitted | Refusal] = []
    for job, id, replayed, stamp, word, due in zip(
        jobs, *(reply[at::5] for at in range(5)), strict=True
    ):
        state = STATES.get(word)
        if state is not None:
            answers.append(Submitted(id.decode(), bool(replayed), int(stamp), state, int(due)))
        elif word == b"reused":
            answers.append(KeyReused())
        elif word == b"full":
            answers.append(
                Full(f"the queue {job.queue!r} has as many unfinished jobs as it may have")
            )
        else:
            answers.append(
                Full("Redis is nearly out of memory: only jobs that were accepted go on")
            )
    return answers


def chunk(place: bytes, fields: Mapping[bytes, bytes]) -> Chunk:
    """An entry of a job's stream, as report.lua writes them."""
    stamp, type, attempt = int(place.partition(b"-")[0]), fields[b"t"].decode(), int(fields[b"a"])
    return Chunk(stamp, type, attempt, fields[b"d"], int(fields.get(b"p", 0)))
