"""Why a job does not run: from its record, and from what can run at that moment."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from tandem_shared.jobs.record import Record
from tandem_shared.jobs.states import OPEN, State
from tandem_shared.jobs.view import Reason, WaitingFor
from tandem_shared.times import rfc3339, rfc3339_of_stamp

WAITING_STATES = frozenset(OPEN) - {State.RUNNING}
SUSPECT_LOSSES = 2  # as in lua/lib/record.lua
ALONE_LOSSES = 3  # as in lua/claim.lua
MAX_REASONS = 1000  # kept of up to about 600 bytes each

Why = tuple[Reason, str]  # the reason, and its detail


class Limit(NamedTuple):
    """What a limit allows at once, 0 for any number, what runs, and when the next may start, ms."""

    slots: int
    running: int
    next_start: float


class Serving(msgspec.Struct, frozen=True):
    """What the live workers of a shard can run, and what is paused, at some moment."""

    queues: Mapping[str, int] = {}  # numbers of workers
    tasks: Mapping[str, int] = {}
    versions: Mapping[str, Iterable[Mapping[str, int]]] = {}  # by queue, of each kind of worker
    published: Mapping[str, int] = {}  # versions by task
    paused: Mapping[str, int] = {}  # queue → stamp of the pause
    complete: bool = True  # False: there are more workers than these
    reasons: dict[tuple[str, str, int], Why] = msgspec.field(default_factory=dict)

    def holds(self, queue: str) -> bool:
        """Whether no due job of the queue can start: it is paused, or no live worker serves it."""
        return queue in self.paused or (self.complete and queue not in self.queues)

    @property
    def open_queues(self) -> frozenset[str] | None:
        """The queues that are not held, None if they are not all known."""
        return frozenset(self.queues) - frozenset(self.paused) if self.complete else None

    def shown(self, record: Record) -> Record:
        """The record with the state that clients see: due jobs of a queue that is held wait."""
        if record.state is not State.QUEUED or not self.holds(record.queue):
            return record
        return msgspec.structs.replace(record, state=State.WAITING)


def limit_of(record: Record) -> str | None:
    """The name of the limit that the job waits for, None if it waits for something else."""
    if record.state is not State.WAITING or not (record.park or "").startswith("limit:"):
        return None
    return (record.park or "").split(":", 3)[3]  # limit:<queue>:<priority>:<name>


def explained(record: Record, serving: Serving, limits: Mapping[str, Limit]) -> Record:
    """The record as clients see it, with what the job waits for."""
    if record.state not in WAITING_STATES or record.waiting_for is not None:
        return record
    since = record.stamp
    if record.state is State.QUEUED and not record.attempts:
        reason, detail = _why_queued(record, serving)
    elif record.state in (State.SCHEDULED, State.RETRYING):
        reason, detail = _time(record)
    else:
        reason, detail = _why(record, serving, limits)
    if reason != "time":
        since = max(since, record.due * 1000)
    if reason == "paused":
        since = max(since, serving.paused[record.queue])
    waiting_for = WaitingFor(reason, detail, rfc3339_of_stamp(since) or "")
    held = record.state is State.QUEUED and reason in ("paused", "no_worker")
    state = State.WAITING if held else record.state
    return msgspec.structs.replace(record, state=state, waiting_for=waiting_for)


def _why_queued(record: Record, serving: Serving) -> Why:
    """`_why` for a job that was never started: it is the same for all of a task in a queue."""
    kind = (record.queue, record.task, record.version)
    found = serving.reasons.get(kind)
    if found is None:
        if len(serving.reasons) >= MAX_REASONS:
            serving.reasons.clear()
        found = serving.reasons[kind] = _why(record, serving, {})
    return found


def _time(record: Record) -> Why:
    what = "the next attempt" if record.state is State.RETRYING else "the job"
    return "time", f"{what} is due at {rfc3339(record.due / 1000)}"


def _why(record: Record, serving: Serving, limits: Mapping[str, Limit]) -> Why:
    queue = record.queue
    if queue in serving.paused:
        return "paused", f'the queue "{queue}" is paused'
    if serving.holds(queue):
        return "no_worker", f'no live worker serves the queue "{queue}"'
    limit = limit_of(record)
    if limit is not None:
        return _limited(record, limit, limits.get(limit))
    if record.state is State.WAITING and (record.park or "").startswith("format:"):
        text = f'the live workers of the queue "{queue}" are older than the API that took the job'
        return "version", text
    unable = _unable(record, serving)
    if unable is not None:
        return unable
    losses = sum(one.outcome == "worker_lost" for one in record.attempts)
    if losses >= ALONE_LOSSES:
        return "suspect", f"{losses} workers were lost while they ran the job: it next runs alone"
    if losses >= SUSPECT_LOSSES:
        text = f"{losses} workers were lost while they ran the job: such jobs run one per worker"
        return "suspect", text
    return "slot", f'the job waits for a free slot on a worker of the queue "{queue}"'


def _unable(record: Record, serving: Serving) -> Why | None:
    """What the live workers of the queue lack to run the job, None if one can."""
    queue, task = record.queue, record.task
    wanted = min(record.version, serving.published.get(task, record.version))
    found = [one[task] for one in serving.versions.get(queue, ()) if task in one]
    if not serving.complete or any(version >= wanted for version in found):
        return None
    if not found:
        return "no_task", f'no live worker of the queue "{queue}" has the task "{task}"'
    what = f'version {wanted} of the task "{task}"'
    return "version", f'no live worker of the queue "{queue}" has {what}'


def _limited(record: Record, name: str, limit: Limit | None) -> Why:
    key = name.startswith("key:")
    what = name.removeprefix(f"key:{record.tenant}:" if key else "task:")
    whose = f'with the concurrency key "{what}"' if key else f'of the task "{what}"'
    reason: Reason = "concurrency_key" if key else "task_concurrency"
    if limit is None:
        return reason, f"the job waits for the attempts {whose}"
    if not key and (limit.slots == 0 or limit.running < limit.slots):
        at = rfc3339(limit.next_start / 1000)
        return "rate", f"the rate {whose} allows its next start at {at}"
    return reason, f"{limit.running} of {limit.slots} attempts {whose} run"
