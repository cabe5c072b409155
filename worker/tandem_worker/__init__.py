"""What authors of tasks import: `from tandem_worker import Job, task`."""

from tandem_shared.retry_policy import RetryPolicy
from tandem_worker.errors import Permanent, Retry
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.sync import SyncJob
from tandem_worker.task import task

__all__ = ["FileRef", "Job", "Permanent", "Retry", "RetryPolicy", "SyncJob", "task"]
