"""Arguments and replies of the scripts, as Python values."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec

from tandem_shared.errors import Full, KeyReused
from tandem_shared.jobs.record import Submission
from tandem_shared.jobs.states import STATES, Outcome, State
from tandem_shared.jobs.waiting import Serving
from tandem_shared.queue.scripts import ENTRY_BYTES, Arg

Refusal = KeyReused | Full  # why a job was not accepted


class Submitted(NamedTuple):
    """An accepted job. `replayed`: its idempotency key was known, and `id` is the first job's."""

    id: str
    replayed: bool
    stamp: int
    state: State
    due: int  # ms since the epoch


class Claimed(NamedTuple):
    """A job as a worker gets it; `payload` and `options` are JSON, `due_ms` is since the epoch."""

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
    """The answer to a claim.

    `registered`: if False, the worker must register first. `more`: due jobs are left. `blocked`:
    this worker can take them once an attempt of its own has ended.
    `next_due`: seconds until a job falls due, None if none is scheduled. `settled`: leases that
    ended.
    """

    registered: bool
    more: bool
    blocked: bool
    next_due: float | None
    settled: int
    jobs: list[Claimed]


class Held(NamedTuple):
    """An attempt that a worker holds, as a heartbeat names it."""

    id: str
    token: str


class Beat(NamedTuple):
    """The answer to a heartbeat: `registered` as in Claim, and the attempts that should stop."""

    registered: bool
    lost: list[Held]
    cancelled: list[Held]


class Finish(NamedTuple):
    """How an attempt ended: `to` is the next state; `queued` hands the job back uncharged.

    `body` is the JSON of the result or the failure, `delay` the seconds until a retry, `files` the
    JSON of the published files, `reports` the number of the attempt's last report.
    """

    id: str
    token: str
    to: State
    outcome: Outcome
    body: bytes = b"null"
    delay: float = 0.0
    files: bytes = b""
    reports: int = 0


class Report(NamedTuple):
    """Progress, log lines or output (`type`) of a running job, as JSON; the last two one per line.

    `number` counts the attempt's reports from 1, so that a repeated report is written once.
    `stamp` is that of an entry that Redis has lost and gets again.
    """

    id: str
    token: str
    number: int
    type: str
    body: bytes
    stamp: int = 0


class Reported(NamedTuple):
    """The answer to a report, see `Queue.report`; `stamp` is that of an entry just written."""

    word: str
    stamp: int = 0


class Chunk(NamedTuple):
    """One entry of a job's output stream; its items, one per line of `body`, share the stamp.

    `before` is the stamp of the previous entry, 0 for the first.
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
        """The bytes that it counts as in Redis."""
        return len(self.body) + ENTRY_BYTES


class Segment(NamedTuple):
    """Output moved to the file store: stamps of its first and last entry, and its bytes."""

    first: int
    last: int
    size: int


class QueueStats(NamedTuple):
    """Jobs of one queue by state, and the seconds that its oldest due job has waited."""

    name: str
    paused: bool = False
    waiting: int = 0
    scheduled: int = 0
    queued: int = 0
    running: int = 0
    retrying: int = 0
    oldest_age: float | None = None
    workers: int = 0  # live ones that serve it


def parse_serving(reply: list[list[bytes] | None]) -> Serving:
    """From serving.lua's reply."""
    workers, tasks, published, paused = ([one.decode() for one in part or ()] for part in reply)
    versions: dict[str, dict[str, int]] = defaultdict(dict)  # by digest
    for digest, task, version in _rows(tasks, 3):
        versions[digest][task] = int(version)
    by_queue, by_task = Counter[str](), Counter[str]()
    kinds: dict[str, list[dict[str, int]]] = defaultdict(list)
    for digest, queues, number in _rows(workers, 3):
        for queue in filter(None, queues.split(",")):
            by_queue[queue] += int(number)
            kinds[queue].append(versions[digest])
        for task in versions[digest]:
            by_task[task] += int(number)
    return Serving(
        queues=by_queue,
        tasks=by_task,
        versions=kinds,
        published={task: int(version) for task, version in _rows(published, 2)},
        paused={queue: int(stamp) for queue, stamp in _rows(paused, 2)},
        complete=None not in reply[:2],
    )


def _rows(flat: Sequence[str], width: int) -> Iterator[tuple[str, ...]]:
    return zip(*(flat[at::width] for at in range(width)), strict=True)


class WorkerInfo(NamedTuple):
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
    setup: str = ""  # what must be the same in all processes, see setup/identity.py
    zombies: int = 0  # code that still runs though its job has ended


def finish_args(outcomes: Sequence[Finish]) -> list[Arg]:
    """Arguments for finish.lua."""
    args: list[Arg] = []
    for one in outcomes:
        args += (
            one.id, one.token, one.to.value, one.outcome, one.body, int(one.delay * 1000),
            one.files, one.reports,
        )  # fmt: skip
    return args


def submit_args(jobs: Sequence[Submission]) -> list[Arg]:
    """Arguments for enter.lua: each distinct template, then its number, id and payload per job."""
    templates: dict[tuple[Arg, ...], int] = {}
    encoded: dict[int, tuple[bytes, int]] = {}  # by identity: jobs that set none share their task's
    values: list[Arg] = []
    for job in jobs:
        options = encoded.get(id(job.options))
        if options is None:
            options = msgspec.json.encode(job.options), job.max_attempts
            encoded[id(job.options)] = options
        number = templates.setdefault(_template(job, options), len(templates))
        values += (number, job.id, job.payload)
    return [len(templates), *chain.from_iterable(templates), *values]


def _template(job: Submission, shared: tuple[bytes, int]) -> tuple[Arg, ...]:
    options, max_attempts = shared
    key = ""
    if job.idempotency_key is not None:
        key = hashlib.sha256(f"{job.tenant}\0{job.idempotency_key}".encode()).hexdigest()[:32]
    return (
        job.task, job.version, job.tenant, job.queue, job.priority, options, max_attempts,
        "" if job.delay is None else int(job.delay * 1000),
        "" if job.run_at is None else int(job.run_at * 1000),
        "" if job.expires_in is None else int(job.expires_in * 1000),
        job.concurrency_key or "", job.concurrency_limit if job.concurrency_key else "",
        key, job.fingerprint() if key else "",
    )  # fmt: skip


def parse_submitted(reply: list[bytes], jobs: Sequence[Submission]) -> list[Submitted | Refusal]:
    """The answers to these jobs in a reply of submit.lua."""
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
            answers.append(Full(f"the queue {job.queue!r} holds its maximum of unfinished jobs"))
        else:
            answers.append(Full("Redis is nearly out of memory and accepts no new jobs"))
    return answers


def parse_claim(reply: list[Any]) -> Claim:
    """The answer in a reply of claim.lua."""
    registered, more, due_ms, settled, *flat = reply
    jobs = [
        Claimed(
            id.decode(), token.decode(), int(attempt), int(maximum), task.decode(), tenant.decode(),
            payload, options, int(due),
        )
        for id, token, attempt, maximum, task, tenant, payload, options, due in zip(
            *(flat[at::9] for at in range(9)), strict=True
        )
    ]  # fmt: skip
    next_due = None if due_ms < 0 else due_ms / 1000
    return Claim(bool(registered), more > 0, more == 2, next_due, settled, jobs)


def parse_beat(reply: list[Any], held: Sequence[tuple[str, str]]) -> Beat:
    """The answer in a reply of beat.lua to a heartbeat for these attempts."""
    registered, *words = reply
    tokens = dict(held)
    beat = Beat(bool(registered), [], [])
    for word, id in zip(words[::2], map(bytes.decode, words[1::2]), strict=True):
        (beat.lost if word == b"lost" else beat.cancelled).append(Held(id, tokens[id]))
    return beat


def parse_reported(answer: int | bytes) -> Reported:
    """One answer in a reply of report.lua."""
    if isinstance(answer, bytes):
        return Reported(answer.decode())
    return Reported("ok" if answer > 0 else "long", abs(answer))


def parse_chunk(entry: bytes, fields: Mapping[bytes, bytes]) -> Chunk:
    """An entry of a job's stream, as report.lua writes it."""
    stamp = int(entry.partition(b"-")[0])
    before = int(fields.get(b"p", 0))
    return Chunk(stamp, fields[b"t"].decode(), int(fields[b"a"]), fields[b"d"], before)


def parse_segment(entry: bytes, fields: Mapping[bytes, bytes]) -> Segment:
    """An entry of a job's index of segments, as archive.lua writes it."""
    return Segment(int(fields[b"f"]), int(entry.partition(b"-")[0]), int(fields[b"s"]))
