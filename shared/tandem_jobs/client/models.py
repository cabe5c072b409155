"""What the API's answers hold, as its Python client gives them: docs of each field are the HTTP contract's.

Fields that a newer API adds are ignored.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import unquote

import msgspec


class Progress(msgspec.Struct, frozen=True):
    """How far a job is; `total` may not be known."""

    current: float
    total: float | None = None
    message: str | None = None


class Reason(msgspec.Struct, frozen=True):
    """Why a job failed or, between attempts, why the last one did."""

    type: str
    message: str
    retryable: bool = False
    attempt: int = 0
    next_attempt_at: datetime | None = None


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
        """What names the file in a payload. Raises ValueError if nothing does."""
        if self.id is not None:
            return {"file": self.id}
        job, found, name = (self.url or "").removeprefix("/v1/jobs/").partition("/files/")
        if not found:
            raise ValueError("only uploads and jobs' files have a reference")
        return {"file": f"{job}/{unquote(name)}"}


class Attempt(msgspec.Struct, frozen=True):
    attempt: int
    started_at: datetime | None = None
    finished_at: datetime | None = None
    outcome: str | None = None  # None: it runs
    worker: str | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it was when the API told it."""

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
    cancel_requested: bool = False
    tags: Mapping[str, str] = {}
    files: tuple[File, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    replay_of: str | None = None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a job's stream: `type` is `state`, `progress`, `log`, `output` or `end`, `raw` its data as JSON."""

    id: str
    type: str
    attempt: int
    at: datetime
    raw: msgspec.Raw = msgspec.field(name="data")

    @property
    def data(self) -> Any:
        """The data, decoded each time: an output item as the task gave it."""
        return msgspec.json.decode(self.raw)

    @property
    def job(self) -> Job:
        """The data of `state` and `end`."""
        return msgspec.json.decode(self.raw, type=Job)

    @property
    def progress(self) -> Progress:
        """The data of `progress`."""
        return msgspec.json.decode(self.raw, type=Progress)
