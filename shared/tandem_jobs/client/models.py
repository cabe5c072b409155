"""The API's answers as its Python client returns them; fields that a newer API adds are ignored."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import unquote

import msgspec


class Progress(msgspec.Struct, frozen=True):
    """How far a job is; `total` is None if unknown."""

    current: float
    total: float | None = None
    message: str | None = None


class Reason(msgspec.Struct, frozen=True):
    """Why a job failed or, between attempts, why the last attempt failed."""

    type: str
    message: str
    retryable: bool = False
    attempt: int = 0
    next_attempt_at: datetime | None = None


class WaitReason(msgspec.Struct, frozen=True):
    """Why a job that is not final does not run: `reason` is one word, `detail` a sentence."""

    reason: str
    detail: str
    since: datetime | None = None


class File(msgspec.Struct, frozen=True):
    """An upload, which has an `id`, or a file that a job produced, which has a `url`."""

    name: str | None = None
    size: int = 0  # bytes
    sha256: str = ""  # hexadecimal
    id: str | None = None
    url: str | None = None
    content_type: str = "application/octet-stream"
    expires_at: datetime | None = None

    @property
    def reference(self) -> dict[str, str]:
        """How a payload names the file. Raises ValueError without an `id` or a `url`."""
        if self.id is not None:
            return {"file": self.id}
        job, found, name = (self.url or "").removeprefix("/v1/jobs/").partition("/files/")
        if not found:
            raise ValueError("a file without an id and a url has no reference")
        return {"file": f"{job}/{unquote(name)}"}


class Attempt(msgspec.Struct, frozen=True):
    attempt: int
    started_at: datetime | None = None
    finished_at: datetime | None = None
    outcome: str | None = None  # None while it runs
    worker: str | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it was when the API answered."""

    id: str
    task: str
    state: str
    done: bool
    queue: str
    priority: str
    attempt: int
    max_attempts: int
    submitted_at: datetime
    scheduled_for: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    timeout: float = 0.0  # seconds
    progress: Progress | None = None
    result: Any = None
    error: Reason | None = None
    waiting_for: WaitReason | None = None  # None while it runs, and once it is final
    cancel_requested: bool = False
    tags: Mapping[str, str] = {}
    files: tuple[File, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    replay_of: str | None = None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a job's stream, of type `state`, `progress`, `log`, `output` or `end`."""

    id: str
    type: str
    attempt: int
    at: datetime
    raw: msgspec.Raw = msgspec.field(name="data")  # JSON

    @property
    def data(self) -> Any:
        """The data, decoded at each access: for `output` the item as the task yielded it."""
        return msgspec.json.decode(self.raw)

    @property
    def job(self) -> Job:
        """The data of `state` and `end`."""
        return msgspec.json.decode(self.raw, type=Job)

    @property
    def progress(self) -> Progress:
        """The data of `progress`."""
        return msgspec.json.decode(self.raw, type=Progress)
