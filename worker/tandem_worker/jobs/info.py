"""The facts that a job's code knows about its attempt, wherever it runs."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(slots=True, kw_only=True, eq=False)
class JobInfo:
    """The facts of one attempt of one job."""

    id: str
    task: str
    deadline: float  # by `time.monotonic()`: when this attempt times out
    attempt: int = 1  # 1, 2, …
    max_attempts: int = 1
    tenant: str = "default"
    traceparent: str | None = None
    stamp: int = 0  # of the claim, µs by Redis' clock; part of the paths of this attempt's files

    def facts(self) -> dict[str, Any]:
        """These fields alone, as JSON values by name."""
        return {field.name: getattr(self, field.name) for field in fields(JobInfo)}
