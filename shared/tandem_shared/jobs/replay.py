"""Replays: a failed or cancelled job runs again as a new job that names the old one."""

from typing import NamedTuple

import msgspec

from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import Record, Submission
from tandem_shared.jobs.states import State

REPLAYABLE = frozenset({State.FAILED, State.CANCELLED})


class ReplayInput(NamedTuple):
    """What a replay needs besides the Record; the payload is JSON."""

    payload: bytes
    concurrency_key: str | None
    concurrency_limit: int | None


def replay(
    record: Record,
    given: ReplayInput,
    *,
    now: float,
    version: int,
    key: str | None = None,
    traceparent: str | None = None,
) -> Submission:
    """A new job with the task, payload and options of an old one; it is due at once.

    `version` is the task's current one, `key` an idempotency key, `now` Redis' time.
    """
    options = msgspec.structs.replace(
        record.options, replay_of=record.id, traceparent=traceparent or record.options.traceparent
    )
    return Submission(
        id=new_id(now),
        task=record.task,
        payload=given.payload,
        options=options,
        version=version,
        tenant=record.tenant,
        queue=record.queue,
        priority=record.priority,
        expires_in=record.options.expires_in,
        concurrency_key=given.concurrency_key,
        concurrency_limit=given.concurrency_limit or 1,
        idempotency_key=key,
    )


def replay_key(record: Record) -> str:
    """The idempotency key of a bulk replay: a job is replayed once, however often it matches.

    The leading NUL keeps it apart from keys that clients choose.
    """
    return f"\0replay {record.id}"
