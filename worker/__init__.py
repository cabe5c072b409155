"""What authors of tasks import: `from worker import Job, task`."""

from shared.retry import RetryPolicy
from worker.errors import Permanent, Retry
from worker.files import FileRef
from worker.job import Job
from worker.sync import SyncJob
from worker.task import task

__all__ = ["FileRef", "Job", "Permanent", "Retry", "RetryPolicy", "SyncJob", "task"]
