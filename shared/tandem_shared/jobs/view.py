"""The job as clients see it; `record.job_json` fills it in."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from tandem_shared.jobs.states import Outcome, Priority, State

Count = Annotated[int, Meta(ge=0)]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class JobLinks(msgspec.Struct):
    """Where a job, its stream and its result are."""

    self: str
    stream: str
    result: str


class JobProgress(msgspec.Struct):
    """How far a job is, as its code last said."""

    current: float
    total: float | None
    message: str | None


class JobFile(msgspec.Struct):
    """A file that a job produced."""

    name: str
    size: Annotated[int, Meta(ge=0, description="bytes")]
    sha256: Annotated[str, Meta(description="hexadecimal")]
    content_type: str
    url: str


class JobAttempt(msgspec.Struct):
    """One execution of a job."""

    attempt: Count
    started_at: Time
    finished_at: Time | None
    outcome: Annotated[Outcome | None, Meta(description="null while it runs")]
    worker: str


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why an attempt failed: the message contains no secret, traceback or path."""

    type: Annotated[
        str,
        Meta(
            description="`exception:<Class>`, `timeout`, `worker_lost`, `invalid_payload`,"
            " `unknown_task`, `expired`, `dependency_failed`, `record_lost`, `unavailable`"
            " or a word of the task's own"
        ),
    ]
    message: str
    retryable: bool
    attempt: Count


class JobError(Failure, frozen=True, kw_only=True):
    """Why the job failed or, between attempts, why the last one did."""

    next_attempt_at: Time | None


Reason = Literal[
    "time",
    "no_worker",
    "no_task",
    "version",
    "paused",
    "concurrency_key",
    "task_concurrency",
    "rate",
    "slot",
    "suspect",
]


class WaitingFor(msgspec.Struct, frozen=True):
    """Why a job that is not final does not run."""

    reason: Reason
    detail: Annotated[str, Meta(description="what would end the waiting")]
    since: Time


class JobView(msgspec.Struct, kw_only=True):
    """The status of a job."""

    id: Annotated[str, Meta(description="opaque, URL-safe, sorts by submission")]
    task: str
    state: State
    done: bool
    queue: str
    priority: Priority
    attempt: Count
    max_attempts: Count
    submitted_at: Time
    scheduled_for: Time | None
    started_at: Time | None
    finished_at: Time | None
    timeout: Annotated[float, Meta(description="seconds")]
    progress: JobProgress | None
    result: Annotated[Any, Meta(description="null unless the state is `succeeded`")]
    error: JobError | None
    waiting_for: Annotated[
        WaitingFor | None, Meta(description="null while the job runs, and once it is final")
    ]
    cancel_requested: bool
    tags: dict[str, str]
    files: list[JobFile]
    attempts: list[JobAttempt]
    links: JobLinks
    replay_of: str | UnsetType = UNSET
    payload: Annotated[Raw | UnsetType, Meta(description="only with `?payload=true`")] = UNSET
