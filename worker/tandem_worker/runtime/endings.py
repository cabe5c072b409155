"""What the worker's log and metrics say about attempts that fail, and about jobs that end.

An attempt is logged by the worker that ran it. That a job has ended is counted by whoever copies
its end to the ledger: only there do the ends arrive that no attempt decides, which are logged too.
"""

from pathlib import Path
from types import TracebackType

import structlog

from tandem_shared.jobs.states import State
from tandem_shared.ledger.rows import read_error
from tandem_shared.queue.events import LEDGER_FIELDS, LedgerValues
from tandem_shared.queue.messages import Claimed, Finish
from tandem_worker.failures import Fault
from tandem_worker.runtime.metrics import WorkerMetrics

# Failures without an attempt that could have logged them.
UNATTENDED = frozenset({"worker_lost", "expired", "record_lost"})
_TASK, _STATE, _ERROR = map(LEDGER_FIELDS.index, ("task", "state", "error"))
_PACKAGE = str(Path(__file__).parent.parent) + "/"

log = structlog.get_logger("worker")


def log_failure(claimed: Claimed, fault: Fault, finish: Finish, error: Exception | None) -> None:
    """Say how the attempt failed: `error` if it was the last one, `warning` if another follows.

    An exception of the task's own code comes with its traceback.
    """
    fields = {
        "job_id": claimed.id,
        "task": claimed.task,
        "attempt": claimed.attempt,
        "type": fault.type,
        "error": fault.message,
    }
    if error is not None and fault.type.startswith("exception:"):
        fields["exc_info"] = (type(error), error, own_frames(error.__traceback__))
    if finish.to is State.RETRYING:
        log.warning("attempt failed, another follows", in_seconds=round(finish.delay, 3), **fields)
    else:
        log.error("job failed", **fields)


def job_ended(metrics: WorkerMetrics, id: str, values: LedgerValues) -> None:
    """Count a job that is final, by its state, or by the type of its failure where that tells more.

    A job that failed without an attempt to say so is logged.
    """
    task, outcome = values[_TASK] or "", values[_STATE] or ""
    if outcome == State.FAILED and (error := values[_ERROR]):
        failure = read_error(error)
        if failure.type in UNATTENDED:
            log.error("job failed", job_id=id, task=task, type=failure.type, error=failure.message)
        if failure.type in UNATTENDED or failure.type == "timeout":
            outcome = failure.type
    metrics.job_ended(task, outcome)


def own_frames(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback from the task's first frame on, without those of the worker that called it."""
    inner = traceback
    while inner is not None and inner.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        inner = inner.tb_next
    return inner or traceback
