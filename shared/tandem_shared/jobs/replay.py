"""Replays: a failed or cancelled job is run again as a new job, which names the old one."""

from typing import NamedTuple

import msgspec

from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import Record, Submission
from tandem_shared.jobs.states import State

REPLAYED = frozenset({State.FAILED, State.CANCELLED})  # what may be


class Material(NamedTuple):
    """What a replay needs and a Record does not have; the payload is JSON."""

    payload: bytes
    concurrency_key: str | None
    concurrency_limit: int | None


def again(
    record: Record,
    material: Material,
    *,
    version: int,
    key: str | None = None,
    traceparent: str | None = None,
) -> Submission:
    """A new job with the task, payload and options of an old one. It is due at once: delays are not repeated.

    `expires_in` counts from now, `version` is that of the task as it is now, `key` an idempotency
    key.
    """
    options = msgspec.structs.replace(
        record.options, replay_of=record.id, traceparent=traceparent or record.options.traceparent
    )
    return Submission(
        id=new_id(),
        task=record.task,
        payload=material.payload,
        options=options,
        version=version,
        tenant=record.tenant,
        queue=record.queue,
        priority=record.priority,
        expires_in=record.options.expires_in,
        concurrency_key=material.concurrency_key,
        concurrency_limit=material.concurrency_limit or 1,
        idempotency_key=key,
    )


def key_of(record: Record) -> str:
    """The idempotency key under which a job is replayed once, however often all that match are.

    No client sends one like it by accident, and none by intent gets more than its own request
    refused.
    """
    return f"\0replay {record.id}"
