"""The job: its states, its legal transitions, its record as Redis holds it, and how clients see it.

A record is one hash. Field names are short because each of a million waiting jobs repeats them:

    f         format of the record              state     where the job is in its life
    task      its name          ver  version    v         stamp (µs) of the last visible change:
                                     version and ETag
    tenant    queue   prio                      attempt   number of the current or last attempt
    payload   JSON as it came                   token     the current (or last) claim:
                                                `<stamp>.<worker>`, the fence
    opts      JSON, see Options                 began     stamp of the current attempt's claim
    max       attempts allowed                  ended     stamp of the final transition
    at        stamp of the submission           attempts  one line an ended attempt: n began ended
              outcome worker
    due       ms, the score in the queue        losses    workers lost under it
    run       ms, when it was asked to run      cancel    stamp of the request to cancel
    exp       ms, no attempt starts after it    park      why it may not run now
    idem      its idempotency key, hashed       progress result error files    JSON
    ck cl     concurrency key and limit         o ob ot   stamp of its last output, bytes of output,
              those in Redis
    sb        bytes of its steps' results       oq        number of the attempt's last report
    lk        locks that its attempt holds or waits for

Every record has 14 of them (enter.lua), and scripts tell by their number whether there can be
others (record.lua). All times are Redis `TIME`. Stamps are microseconds and grow with every visible
change, also when the clock steps back.
"""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET

from tandem_shared.jobs.states import FINAL, STATES, Outcome, Priority, State
from tandem_shared.jobs.view import JobAttempt, JobError, JobFile, JobView
from tandem_shared.retry import DEFAULT_MAX_ATTEMPTS
from tandem_shared.times import rfc3339, rfc3339_of_stamp

FORMAT = 1  # of the record; a script that meets a newer one parks the job
SHOWN_ATTEMPTS = 50


# ------------------------------------------------------------------------------------- what goes in


class Options(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a submission decided besides its payload, defaults of the task filled in; durations are seconds."""

    timeout: float
    retry: dict[str, Any] = {}  # the fields of RetryPolicy
    tags: dict[str, str] = {}
    traceparent: str | None = None
    replay_of: str | None = None
    expires_in: float | None = None


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One job to be enqueued, validated and complete."""

    id: str
    task: str
    payload: bytes  # JSON
    options: Options
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
        """How many attempts its retry policy allows."""
        return int(self.options.retry.get("max_attempts", DEFAULT_MAX_ATTEMPTS))

    def fingerprint(self) -> str:
        """What must be equal when an idempotency key comes again: task, payload (spelling aside), what it replays."""
        canonical = msgspec.json.encode(msgspec.json.decode(self.payload), order="sorted")
        origin = b"" if self.options.replay_of is None else b"\0" + self.options.replay_of.encode()
        return hashlib.sha256(self.task.encode() + b"\0" + canonical + origin).hexdigest()[:32]


# --------------------------------------------------------------------------------------- the record


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why an attempt failed: what clients see as `error`. The message never holds a secret, a traceback or a path."""

    type: str
    message: str
    retryable: bool
    attempt: int


class Attempt(NamedTuple):
    """One execution. `ended` and `outcome` are None while it runs; stamps in µs."""

    number: int
    began: int
    ended: int | None
    outcome: Outcome | None
    worker: str


class Record(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One job as Redis holds it, without its payload."""

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
    options: Options
    began: int | None = None
    ended: int | None = None
    attempts: tuple[Attempt, ...] = ()  # ended ones, and the one that runs
    cancel: int | None = None  # stamp of the request
    progress: bytes | None = None  # JSON, as are the next three
    result: bytes | None = None
    error: bytes | None = None
    files: bytes | None = None
    output: int = 0  # stamp of the last output entry, 0 without one

    @property
    def done(self) -> bool:
        return self.state in FINAL

    @property
    def etag(self) -> str:
        """The strong entity tag (RFC 9110) of the status: it changes with every change that a client can see."""
        return f'"{self.stamp}"'

    def produced_files(self) -> list[JobFile]:
        """The entries of `files`, decoded."""
        return _files.decode(self.files) if self.files else []

    @cached_property
    def told(self) -> tuple[tuple[int, int, bytes], ...]:
        """Its `history` as (stamp, attempt, JSON of the job as it then was): made once for all who read this record."""
        return tuple((stamp, then.attempt, view(then)) for stamp, then in history(self))


# The fields that `parse` reads, in its order. Lua never decodes any JSON among them.
FIELDS = (
    "state task tenant queue prio v attempt max at run due opts began ended attempts token cancel progress result error"
    " files o"
).split()

_options = msgspec.json.Decoder(Options)
_files = msgspec.json.Decoder(list[JobFile])


def _int(value: bytes | None) -> int | None:
    return int(value) if value else None


def _attempts(lines: bytes | None) -> Iterator[Attempt]:
    for line in (lines or b"").decode().splitlines():
        number, began, ended, outcome, worker = line.split(" ")
        yield Attempt(int(number), int(began), int(ended), outcome, worker)  # type: ignore[arg-type] # nothing else is written


def parse(id: str, values: list[bytes | None]) -> Record | None:
    """The record from the values of FIELDS; None if there is no such record."""
    (
        state, task, tenant, queue, priority, stamp, attempt, maximum, at, run, due, options, began, ended, attempts,
        token, cancel, progress, result, error, files, output,
    ) = values  # fmt: skip
    if state is None:
        return None
    history = tuple(_attempts(attempts))
    if state == b"running":
        worker = (token or b"").decode().partition(".")[2]
        history = (*history, Attempt(int(attempt or 0), int(began or 0), None, None, worker))
    return Record(
        id=id,
        task=(task or b"").decode(),
        tenant=(tenant or b"").decode(),
        queue=(queue or b"").decode(),
        priority=(priority or b"normal").decode(),  # type: ignore[arg-type] # the scripts write nothing else
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
    )


# --------------------------------------------------------------------------------- what clients see


def plain(seconds: float) -> float:
    """Seconds as a JSON number: 30, not 30.0."""
    return int(seconds) if float(seconds).is_integer() else seconds


def view(record: Record, *, payload: bytes | None = None) -> bytes:
    """The job as JSON, API.md's "The job"; with `payload` (JSON) only where a client asked for it."""
    base = f"/v1/jobs/{record.id}"
    started = record.attempts[0].began if record.attempts else None
    return msgspec.json.encode(
        JobView(
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
            started_at=rfc3339_of_stamp(record.began or started),
            finished_at=rfc3339_of_stamp(record.ended),
            timeout=plain(record.options.timeout),
            progress=_raw(record.progress),
            result=_raw(record.result) if record.state is State.SUCCEEDED else None,
            error=_error(record),
            cancel_requested=record.cancel is not None,
            tags=record.options.tags,
            files=_raw(record.files) or [],  # type: ignore[arg-type] # JSON of JobFile as it stands
            attempts=[
                JobAttempt(
                    attempt=attempt.number,
                    started_at=rfc3339_of_stamp(attempt.began) or "",
                    finished_at=rfc3339_of_stamp(attempt.ended),
                    outcome=attempt.outcome,
                    worker=attempt.worker,
                )
                for attempt in record.attempts[-SHOWN_ATTEMPTS:]
            ],
            links={"self": base, "stream": f"{base}/stream", "result": f"{base}/result"},
            replay_of=record.options.replay_of or UNSET,
            payload=UNSET if payload is None else msgspec.Raw(payload),
        )
    )


def _raw(value: bytes | None) -> msgspec.Raw | None:
    return msgspec.Raw(value) if value is not None else None


# Between attempts the error says why the last one failed.
_EXPLAINED = frozenset({State.FAILED, State.RETRYING, State.QUEUED, State.WAITING})


def _error(record: Record) -> JobError | None:
    if record.error is None or record.state not in _EXPLAINED:
        return None
    failure = msgspec.json.decode(record.error, type=Failure)
    return JobError(
        type=failure.type,
        message=failure.message,
        retryable=failure.retryable,
        attempt=failure.attempt,
        next_attempt_at=None if record.done else rfc3339(record.due / 1000),
    )


def history(record: Record) -> list[tuple[int, Record]]:
    """The `state` entries of the job's stream: (stamp, the record as it then was), oldest first.

    Nothing is stored for them: the submission, each attempt's begin and end, the request to cancel
    and the present state all have their stamps in the record, so every reader of every replica
    derives the same entries.
    """
    began: dict[str, Any] = {
        "began": None,
        "ended": None,
        "result": None,
        "error": None,
        "files": None,
    }
    blank = msgspec.structs.replace(
        record, attempt=0, attempts=(), progress=None, cancel=None, **began
    )
    first = State.SCHEDULED if record.scheduled_for is not None else State.QUEUED
    points: list[tuple[int, dict[str, Any]]] = [(record.submitted, {"state": first})]
    for index, attempt in enumerate(record.attempts):
        open_attempt = attempt._replace(ended=None, outcome=None)
        before = record.attempts[:index]
        points.append(
            (
                attempt.began,
                {
                    "state": State.RUNNING,
                    "attempt": attempt.number,
                    "began": attempt.began,
                    "attempts": (*before, open_attempt),
                },
            )
        )
        if attempt.ended is not None:
            state = (
                State.QUEUED if attempt.outcome in ("released", "worker_lost") else State.RETRYING
            )
            points.append(
                (
                    attempt.ended,
                    {
                        "state": state,
                        "attempt": attempt.number,
                        "began": attempt.began,
                        "attempts": (*before, attempt),
                    },
                )
            )
    # While it runs the stamp also moves with progress, which has entries of its own; else it is the
    # last transition's.
    running = record.state is State.RUNNING
    past = [(stamp, changes) for stamp, changes in points if running or stamp < record.stamp]
    if (
        record.cancel is not None
        and record.submitted < record.cancel
        and (running or record.cancel < record.stamp)
    ):
        then = [changes for stamp, changes in past if stamp < record.cancel][-1]
        past.append((record.cancel, {**then, "cancel": record.cancel}))
        past.sort(key=lambda point: point[0])
    entries = [
        (stamp, msgspec.structs.replace(blank, stamp=stamp, **changes)) for stamp, changes in past
    ]
    return entries if running else [*entries, (record.stamp, record)]
