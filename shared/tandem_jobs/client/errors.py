"""What a client of the API meets when a call does not give what was asked for.

TandemError
├── Problem              the API refused (RFC 9457): type, title, status, detail, errors
├── JobUnsuccessful      a job's result was asked for, and there is none: `job` is the final job
│   ├── JobFailed        `error` says why
│   └── JobCancelled
└── Unavailable          nobody answered for as long as the client's patience lasts; asking again
  helps

A wait that is over is Python's own TimeoutError. This is the other end of
`api/tandem_api/http/problems.py`, so statuses are HTTP's.
"""

import msgspec

from tandem_jobs.client.models import Job, Reason
from tandem_shared.errors import TandemError

SHOWN = 200  # characters of an answer that is no problem document


class FieldError(msgspec.Struct, frozen=True):
    """One place of the request that the contract refuses: an RFC 6901 pointer and a sentence."""

    pointer: str = ""
    detail: str = ""


class _Document(msgspec.Struct, frozen=True):
    type: str = "about:blank"
    title: str = ""
    detail: str = ""
    errors: tuple[FieldError, ...] = ()


class Problem(TandemError):
    """The API refused. `type` is the problem's URI reference (`/problems/validation`), `status` that of HTTP."""

    def __init__(
        self, status: int, type: str, title: str, detail: str, errors: tuple[FieldError, ...] = ()
    ) -> None:
        super().__init__(f"{title}: {detail}" if detail else title)
        self.status, self.type, self.title, self.detail, self.errors = (
            status,
            type,
            title,
            detail,
            errors,
        )


class JobUnsuccessful(TandemError):
    """There is no result and there will be none."""

    def __init__(self, job: Job, text: str) -> None:
        super().__init__(text)
        self.job = job


class JobFailed(JobUnsuccessful):
    """The job failed, `error` says why: `type`, `message`, `attempt`."""

    def __init__(self, job: Job) -> None:
        self.error = job.error or Reason(type="failed", message="no reason is known")
        super().__init__(job, f"the job failed ({self.error.type}): {self.error.message}")


class JobCancelled(JobUnsuccessful):
    """The job was cancelled."""

    def __init__(self, job: Job) -> None:
        super().__init__(job, "the job was cancelled")


def problem_of(status: int, content_type: str, body: bytes) -> Problem:
    """The problem in an answer; of one that something on the way gave, its status and its first words."""
    if content_type.partition(";")[0].strip().lower() == "application/problem+json":
        try:
            found = msgspec.json.decode(body, type=_Document)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass
        else:
            return Problem(
                status,
                found.type,
                found.title or f"HTTP status {status}",
                found.detail,
                found.errors,
            )
    text = " ".join(body[: 4 * SHOWN].decode(errors="replace").split())[:SHOWN]
    return Problem(status, "about:blank", f"HTTP status {status}", text)
