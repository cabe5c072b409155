"""Queues and workers, as operators see them."""

import re
from typing import Annotated

from fastapi import Depends, Path
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PlainSerializer

from tandem_api.http.caching import no_cache
from tandem_api.openapi.describe import COMMON, json_router, problems
from tandem_api.redis_retry import retry_briefly
from tandem_api.state import RequestState, StateDep
from tandem_shared.errors import NotFound
from tandem_shared.queue.messages import QueueStats, WorkerInfo
from tandem_shared.settings import QUEUE_NAME_PATTERN
from tandem_shared.times import rfc3339

router = json_router("operating", responses=COMMON, dependencies=[Depends(no_cache)])

QueueName = Annotated[str, Path(description="The queue's name")]
Time = Annotated[
    float, PlainSerializer(rfc3339, str), Field(json_schema_extra={"format": "date-time"})
]


class Queue(BaseModel):
    """A queue: its jobs by state, and how long the oldest due one has waited."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    paused: bool
    waiting: NonNegativeInt
    scheduled: NonNegativeInt
    queued: NonNegativeInt
    running: NonNegativeInt
    retrying: NonNegativeInt
    oldest_age: float | None = Field(description="seconds")
    workers: NonNegativeInt = Field(description="live ones that serve it")


class QueueList(BaseModel):
    """All queues."""

    items: list[Queue]


class Worker(BaseModel):
    """A live worker."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    host: str
    pid: NonNegativeInt
    queues: list[str]
    concurrency: NonNegativeInt
    running: list[str] = Field(description="job ids")
    zombies: NonNegativeInt = Field(
        description="code that still runs although its job has ended: it ignored its cancellation"
    )
    started_at: Time
    last_seen: Time
    version: str
    draining: bool


class WorkerList(BaseModel):
    """All live workers."""

    items: list[Worker]


@router.get("/v1/queues", response_model=QueueList)
async def list_queues(state: StateDep) -> dict[str, list[QueueStats]]:
    """List the queues: all that have unfinished jobs or live workers, or are paused."""
    return {"items": await retry_briefly(state["queue"].stats)}


@router.post(
    "/v1/queues/{name}/pause",
    response_model=Queue,
    responses=problems(404),
)
async def pause_queue(state: StateDep, name: QueueName) -> QueueStats:
    """Pause a queue: none of its jobs start.

    Running jobs continue, and new ones wait. The queue may be new.
    """
    return await _set_paused(state, name, on=True)


@router.post(
    "/v1/queues/{name}/resume",
    response_model=Queue,
    responses=problems(404),
)
async def resume_queue(state: StateDep, name: QueueName) -> QueueStats:
    """Resume a paused queue."""
    return await _set_paused(state, name, on=False)


async def _set_paused(state: RequestState, name: str, *, on: bool) -> QueueStats:
    if re.fullmatch(QUEUE_NAME_PATTERN, name) is None:
        raise NotFound("queue", name[:64])
    queue = state["queue"]
    await retry_briefly(queue.pause, name, on=on)
    (stats,) = await retry_briefly(queue.stats, [name])
    return stats


@router.get(
    "/v1/workers",
    response_model=WorkerList,
)
async def list_workers(state: StateDep) -> dict[str, list[WorkerInfo]]:
    """List the live workers, and what each of them runs."""
    return {"items": await retry_briefly(state["queue"].workers)}
