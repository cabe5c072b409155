"""The errors of a client's calls.

TandemError
├── Problem              the API refused (RFC 9457): type, title, status, detail, errors
├── JobUnsuccessful      the job has no result; `job` is the final job
│   ├── JobFailed        `error` says why
│   └── JobCancelled
└── Unavailable          the API did not answer for the client's patience; try again later

A call that exceeds its `timeout` raises Python's TimeoutError. `api/tandem_api/http/problems.py`
writes the problems that are read here.
"""

import msgspec

from tandem_jobs.client.models import Job, Reason
from tandem_shared.errors import TandemError

MAX_TEXT_CHARS = 200  # of a response that is not a problem document


class FieldError(msgspec.Struct, frozen=True):
    """One invalid place of a request: an RFC 6901 pointer and a sentence."""

    pointer: str = ""
    detail: str = ""


class _Document(msgspec.Struct, frozen=True):
    type: str = "about:blank"
    title: str = ""
    detail: str = ""
    errors: tuple[FieldError, ...] = ()


class Problem(TandemError):
    """The API refused. `type` is a URI reference such as `/problems/validation`."""

    def __init__(
        self, status: int, type: str, title: str, detail: str, errors: tuple[FieldError, ...] = ()
    ) -> None:
        super().__init__(f"{title}: {detail}" if detail else title)
        self.status, self.type, self.title = status, type, title
        self.detail, self.errors = detail, errors


class JobUnsuccessful(TandemError):
    """The job ended without a result."""

    def __init__(self, job: Job, text: str) -> None:
        super().__init__(text)
        self.job = job


class JobFailed(JobUnsuccessful):
    """The job failed; `error` says why: `type`, `message`, `attempt`."""

    def __init__(self, job: Job) -> None:
        self.error = job.error or Reason(type="failed", message="the API reports no reason")
        super().__init__(job, f"the job failed ({self.error.type}): {self.error.message}")


class JobCancelled(JobUnsuccessful):
    """The job was cancelled."""

    def __init__(self, job: Job) -> None:
        super().__init__(job, "the job was cancelled")


def problem_of(status: int, content_type: str, body: bytes) -> Problem:
    """The problem in a response. A response of a proxy becomes its status and its first words."""
    if content_type.partition(";")[0].strip().lower() == "application/problem+json":
        try:
            found = msgspec.json.decode(body, type=_Document)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass
        else:
            title = found.title or f"HTTP status {status}"
            return Problem(status, found.type, title, found.detail, found.errors)
    text = " ".join(body[: 4 * MAX_TEXT_CHARS].decode(errors="replace").split())
    return Problem(status, "about:blank", f"HTTP status {status}", text[:MAX_TEXT_CHARS])
