"""The states of a job and the legal transitions between them."""

from enum import StrEnum
from typing import Literal


class State(StrEnum):
    """Where a job is in its life; the last three are final."""

    WAITING = "waiting"  # for a concurrency key, a paused queue, or a worker that knows the task
    SCHEDULED = "scheduled"  # for its time
    QUEUED = "queued"  # due, for a free worker
    RUNNING = "running"
    RETRYING = "retrying"  # between attempts
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


STATES = {state.value.encode(): state for state in State}  # as Redis writes them


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
OPEN = tuple(state for state in State if state not in FINAL)


# The legal transitions; the scripts in shared/queue get this very table.
NEXT: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.QUEUED, State.RUNNING, State.FAILED, State.CANCELLED}),
    State.SCHEDULED: frozenset({State.QUEUED, State.FAILED, State.CANCELLED}),
    State.QUEUED: frozenset({State.RUNNING, State.WAITING, State.FAILED, State.CANCELLED}),
    State.RUNNING: frozenset(
        {State.SUCCEEDED, State.FAILED, State.CANCELLED, State.RETRYING, State.QUEUED}
    ),
    State.RETRYING: frozenset({State.QUEUED, State.FAILED, State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


Priority = Literal["high", "normal", "low"]


PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")


Outcome = Literal["succeeded", "failed", "timeout", "cancelled", "worker_lost", "released"]
