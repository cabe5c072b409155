"""The only list of the states of a job, and of the legal transitions between them."""

from enum import StrEnum
from typing import Literal


class State(StrEnum):
    """Where a job is in its life; the last three are final."""

    WAITING = "waiting"  # for a concurrency key, a limit, a paused queue, or a worker with its task
    SCHEDULED = "scheduled"  # for its start time
    QUEUED = "queued"  # due, waiting for a free worker
    RUNNING = "running"
    RETRYING = "retrying"  # between two attempts
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


# Transitions that are allowed. The Lua scripts are generated with this table (queue/scripts.py) and
# raise an error on any other.
TRANSITIONS: dict[State, frozenset[State]] = {
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
FINAL = frozenset(state for state in State if not TRANSITIONS[state])
OPEN = tuple(state for state in State if state not in FINAL)
STATES = {state.value.encode(): state for state in State}  # by the word that Redis holds

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")

Outcome = Literal["succeeded", "failed", "timeout", "cancelled", "worker_lost", "released"]
