"""How long one call of a job to another server may take."""

import time

from tandem_worker.jobs.job import Job

DEADLINE_MARGIN_SECONDS = 1.0


def call_timeout(job: Job) -> float:
    """Seconds until the job's deadline, plus a margin for calls to other servers.

    With the margin the attempt's own timeout comes first, so the job fails as `timeout` and not
    with a driver's error.
    """
    return max(0.0, job.deadline - time.monotonic()) + DEADLINE_MARGIN_SECONDS
