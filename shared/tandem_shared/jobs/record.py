"""The job's record: what a submission holds, what Redis keeps, and what clients see of it.

A record is one Redis hash. Field names are short because each of a million waiting jobs repeats
them. Times are Redis `TIME`; stamps are microseconds and grow with every visible change, even when
the clock steps back.

    field           value
    f               format of the record, RECORD_FORMAT
    state           see states.py
    v               stamp of the last visible change: the version and the ETag
    task, ver       name of the task, and its version
    tenant, queue, prio
    payload         JSON as it was submitted
    opts            JSON of JobOptions
    max, attempt    allowed attempts, and the number of the current or last one
    at, began, ended    stamps of the submission, the current attempt's start and the final state
    run, exp        ms: the requested start; no attempt starts after `exp`
    due             ms: the score in the queue
    token           `<stamp>.<worker>` of the current or last claim: the fence of all writes
    attempts        one line per ended attempt: number began ended outcome worker
    losses          workers that were lost while they ran the job
    cancel          stamp of the request to cancel
    progress, result, error, files    JSON
    park            why the job may not run now
    idem            hash of the idempotency key
    ck, cl          concurrency key, and its limit
    slot            task whose concurrency limit the attempt counts for
    lk              locks that the attempt holds or waits for
    o, ob, ot, oq   output: stamp of the last entry, bytes in all and in Redis, last report's number
    sb              bytes of the results of steps

Every record has the 14 fields that enter.lua writes first; record.lua sees from the number of
fields whether there can be others.
"""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from tandem_shared.jobs.states import FINAL, STATES, Outcome, Priority, State
from tandem_shared.jobs.view import (
    Failure,
    JobAttempt,
    JobError,
    JobFile,
    JobLinks,
    JobView,
    WaitingFor,
)
from tandem_shared.retry_policy import DEFAULT_MAX_ATTEMPTS
from tandem_shared.times import rfc3339, rfc3339_of_stamp

RECORD_FORMAT = 1  # a script that meets a newer format parks the job for a newer worker
MAX_SHOWN_ATTEMPTS = 50  # the record drops the lines of older attempts


class JobOptions(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a submission sets besides its payload, or its task by default; durations in seconds."""

    timeout: float
    retry: dict[str, Any] = {}  # the fields of RetryPolicy
    tags: dict[str, str] = {}
    traceparent: str | None = None
    replay_of: str | None = None
    expires_in: float | None = None


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A validated job, ready to be enqueued."""

    id: str
    task: str
    payload: bytes  # JSON
    options: JobOptions
    version: int = 1
    tenant: str = "default"
    queue: str = "default"
    priority: Priority = "normal"
    delay: float | None = None  # seconds from now
    run_at: float | None = None  # seconds since the epoch
    expires_in: float | None = None  # seconds from now
    concurrency_key: str | None = None
    concurrency_limit: int = 1
    idempotency_key: str | None = None

    @property
    def max_attempts(self) -> int:
        return int(self.options.retry.get("max_attempts", DEFAULT_MAX_ATTEMPTS))

    def fingerprint(self) -> str:
        """Equal for submissions that may share an idempotency key: task, payload and origin."""
        canonical = msgspec.json.encode(msgspec.json.decode(self.payload), order="sorted")
        origin = b"" if self.options.replay_of is None else b"\0" + self.options.replay_of.encode()
        return hashlib.sha256(self.task.encode() + b"\0" + canonical + origin).hexdigest()[:32]


class Attempt(NamedTuple):
    """One execution of a job; `ended` and `outcome` are None while it runs. Times are stamps."""

    number: int
    began: int
    ended: int | None
    outcome: Outcome | None
    worker: str


class Record(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A job as Redis holds it, without its payload."""

    id: str
    task: str
    tenant: str
    queue: str
    priority: Priority
    state: State
    stamp: int
    attempt: int = 0
    max_attempts: int
    submitted: int  # stamp
    scheduled_for: float | None  # seconds since the epoch
    due: int  # ms since the epoch
    options: JobOptions
    began: int | None = None
    ended: int | None = None
    attempts: tuple[Attempt, ...] = ()  # the ended ones, then the one that runs
    cancel: int | None = None  # stamp of the request
    progress: bytes | None = None  # JSON, like the next three
    result: bytes | None = None
    error: bytes | None = None
    files: bytes | None = None
    output: int = 0  # stamp of the last output entry
    version: int = 1  # of the task
    park: str | None = None
    waiting_for: WaitingFor | None = None  # if waiting.py has explained this record

    @property
    def done(self) -> bool:
        return self.state in FINAL

    @property
    def etag(self) -> str:
        """The strong entity tag (RFC 9110) of the status, new with every visible change."""
        return f'"{self.stamp}"'

    def produced_files(self) -> list[JobFile]:
        """The entries of `files`, decoded."""
        return _files.decode(self.files) if self.files else []

    @cached_property
    def _entries(self) -> dict[str, tuple[tuple[int, int, bytes], ...]]:
        return {}

    def state_entries(self, root: str = "") -> tuple[tuple[int, int, bytes], ...]:
        """`state_history` as (stamp, attempt, JSON of the job then), computed once per record."""
        found = self._entries.get(root)
        if found is None:
            found = self._entries[root] = tuple(
                (stamp, then.attempt, job_json(then, root=root))
                for stamp, then in state_history(self)
            )
        return found


# What `parse` reads, in its order; only Redis has the last one. Scripts copy the JSON among these
# without decoding it.
RECORD_FIELDS = (
    "state task tenant queue prio v attempt max at run due opts began ended attempts token"
    " cancel progress result error files o ver park"
).split()

_options = msgspec.json.Decoder(JobOptions)
_files = msgspec.json.Decoder(list[JobFile])


def parse(id: str, values: list[bytes | None]) -> Record | None:
    """The record from the values of RECORD_FIELDS; None if Redis has no such record."""
    (
        state, task, tenant, queue, priority, stamp, attempt, maximum, at, run, due, options, began,
        ended, attempts, token, cancel, progress, result, error, files, output,
        version, park,
    ) = values  # fmt: skip
    if state is None:
        return None
    history = tuple(_ended_attempts(attempts))
    if state == b"running":
        worker = (token or b"").decode().partition(".")[2]
        history = (*history, Attempt(int(attempt or 0), int(began or 0), None, None, worker))
    return Record(
        id=id,
        task=(task or b"").decode(),
        tenant=(tenant or b"").decode(),
        queue=(queue or b"").decode(),
        priority=(priority or b"normal").decode(),  # type: ignore[arg-type] # scripts write no other
        state=STATES[state],
        stamp=int(stamp or 0),
        attempt=int(attempt or 0),
        max_attempts=int(maximum or 1),
        submitted=int(at or 0),
        scheduled_for=int(run) / 1000 if run else None,
        due=int(due or 0),
        options=_options.decode(options or b'{"timeout":30}'),
        began=_int(began),
        ended=_int(ended),
        attempts=history,
        cancel=_int(cancel),
        progress=progress,
        result=result,
        error=error,
        files=files,
        output=int(output or 0),
        version=int(version or 1),
        park=park.decode() if park else None,
    )


def _int(value: bytes | None) -> int | None:
    return int(value) if value else None


def _ended_attempts(lines: bytes | None) -> Iterator[Attempt]:
    for line in (lines or b"").decode().splitlines():
        number, began, ended, outcome, worker = line.split(" ")
        yield Attempt(int(number), int(began), int(ended), outcome, worker)  # type: ignore[arg-type] # leave.lua writes no other outcome


def plain_number(seconds: float) -> float:
    """Seconds as JSON shows them: 30 instead of 30.0."""
    return int(seconds) if float(seconds).is_integer() else seconds


def job_json(record: Record, *, payload: bytes | None = None, root: str = "") -> bytes:
    """The job as clients see it, in JSON; includes `payload` (JSON) if given.

    Its URLs begin with `root`, the path under which the API is published.
    """
    base = f"{root}/v1/jobs/{record.id}"
    attempts = record.attempts
    view = JobView(
        id=record.id,
        task=record.task,
        state=record.state,
        done=record.done,
        queue=record.queue,
        priority=record.priority,
        attempt=record.attempt,
        max_attempts=record.max_attempts,
        submitted_at=rfc3339_of_stamp(record.submitted) or "",
        scheduled_for=rfc3339(record.scheduled_for),
        started_at=rfc3339_of_stamp(record.began or (attempts[0].began if attempts else None)),
        finished_at=rfc3339_of_stamp(record.ended),
        timeout=plain_number(record.options.timeout),
        progress=_raw(record.progress),  # type: ignore[arg-type] # JSON of JobProgress, copied
        result=_raw(record.result) if record.state is State.SUCCEEDED else None,
        error=_error(record),
        waiting_for=record.waiting_for,
        cancel_requested=record.cancel is not None,
        tags=record.options.tags,
        files=_shown_files(record, root),
        attempts=[
            JobAttempt(
                attempt=attempt.number,
                started_at=rfc3339_of_stamp(attempt.began) or "",
                finished_at=rfc3339_of_stamp(attempt.ended),
                outcome=attempt.outcome,
                worker=attempt.worker,
            )
            for attempt in attempts[-MAX_SHOWN_ATTEMPTS:]
        ],
        links=JobLinks(base, f"{base}/stream", f"{base}/result"),
        replay_of=record.options.replay_of or UNSET,
        payload=UNSET if payload is None else msgspec.Raw(payload),
    )
    return msgspec.json.encode(view)


def _shown_files(record: Record, root: str) -> Any:
    if not root:
        return _raw(record.files) or []  # JSON of JobFile, copied
    return [
        msgspec.structs.replace(file, url=f"{root}{file.url}") for file in record.produced_files()
    ]


def _raw(value: bytes | None) -> msgspec.Raw | None:
    return msgspec.Raw(value) if value is not None else None


# States whose `error` is shown. Between attempts it says why the last one failed.
_STATES_WITH_ERROR = frozenset({State.FAILED, State.RETRYING, State.QUEUED, State.WAITING})


def _error(record: Record) -> JobError | None:
    if record.error is None or record.state not in _STATES_WITH_ERROR:
        return None
    failure = msgspec.json.decode(record.error, type=Failure)
    next_attempt = None if record.done else rfc3339(record.due / 1000)
    return JobError(**msgspec.structs.asdict(failure), next_attempt_at=next_attempt)


def state_history(record: Record) -> list[tuple[int, Record]]:
    """The `state` entries of the job's stream: (stamp, the record as it was then), oldest first.

    They are derived, not stored: submission, start and end of each attempt, the request to cancel
    and the current state all have their stamps in the record, so every reader on every replica gets
    the same entries.
    """
    first = State.QUEUED if record.scheduled_for is None else State.SCHEDULED
    points: list[tuple[int, dict[str, Any]]] = [(record.submitted, {"state": first})]
    for index, attempt in enumerate(record.attempts):
        before = record.attempts[:index]
        common = {"attempt": attempt.number, "began": attempt.began}
        started = attempt._replace(ended=None, outcome=None)
        running = {**common, "state": State.RUNNING, "attempts": (*before, started)}
        points.append((attempt.began, running))
        if attempt.ended is not None:
            handed_back = attempt.outcome in ("released", "worker_lost")
            after = State.QUEUED if handed_back else State.RETRYING
            points.append(
                (attempt.ended, {**common, "state": after, "attempts": (*before, attempt)})
            )
    # The stamp of a running job also moves with its progress, which has its own entries. In any
    # other state it is the stamp of the last transition, which `record` itself stands for.
    runs, cancel = record.state is State.RUNNING, record.cancel
    past = [(stamp, changes) for stamp, changes in points if runs or stamp < record.stamp]
    if cancel is not None and record.submitted < cancel and (runs or cancel < record.stamp):
        at = sum(stamp < cancel for stamp, _ in past)
        past.insert(at, (cancel, {**past[at - 1][1], "cancel": cancel}))
    blank = msgspec.structs.replace(
        record, attempt=0, attempts=(), began=None, ended=None, cancel=None,
        progress=None, result=None, error=None, files=None, waiting_for=None,
    )  # fmt: skip
    entries = [
        (stamp, msgspec.structs.replace(blank, stamp=stamp, **changes)) for stamp, changes in past
    ]
    return entries if runs else [*entries, (record.stamp, record)]
