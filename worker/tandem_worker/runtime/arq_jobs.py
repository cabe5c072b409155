"""Jobs that plain arq clients enqueue: `await pool.enqueue_job("http.request", url="https://…")`.

The client's pool needs this JSON serializer, `create_pool(…, job_serializer=serialize,
job_deserializer=deserialize)`, or any other that writes the same as JSON. Keyword arguments are the
payload; so is a single positional object.
"""

import asyncio
import dataclasses
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import msgspec
import structlog
from arq.cron import CronJob
from redis.exceptions import RedisError

from tandem_shared.catalogue import CatalogueEntry
from tandem_shared.errors import Unavailable
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Submission
from tandem_shared.queue.queue import Queue
from tandem_shared.retry_policy import RetryPolicy
from tandem_worker.jobs.job import Job
from tandem_worker.task import DEFAULT_TIMEOUT_SECONDS, Task, task, task_of

MAX_SKIPPED = 1000  # jobs in arq's queue that are not ours, by id
POLL_SECONDS = 0.5  # when arq's queue holds nothing for us, and between two ticks of cron

log = structlog.get_logger("worker")


class _ArqJob(msgspec.Struct):
    """An entry of arq: the function's name, its positional and its keyword arguments."""

    f: str
    a: list[Any]
    k: dict[str, Any]


def serialize(job: dict[str, Any]) -> bytes:
    """arq's job as JSON. An exception among its values is written as its text."""
    return msgspec.json.encode(job, enc_hook=_exception_text)


def _exception_text(value: Any) -> str:
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def deserialize(data: bytes) -> dict[str, Any]:
    """The inverse of `serialize`."""
    return msgspec.json.decode(data, type=dict[str, Any])


def to_submission(
    arq_id: str,
    due: float,
    data: bytes,
    entries: Mapping[str, CatalogueEntry],
    crons: Collection[str] = (),
) -> Submission | None:
    """Our job for arq's; None if `data` is not the JSON of an arq job.

    `due` (seconds since the epoch) is when arq would have started it. arq's id becomes the
    idempotency key, so a job enqueued twice under one id runs once for as long as its record is
    kept. A cron job, which may have the same id each time, runs once per tick.
    """
    try:
        job = msgspec.json.decode(data, type=_ArqJob)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    payload = job.k
    if len(job.a) == 1 and isinstance(job.a[0], dict) and not job.k:
        payload = job.a[0]
    elif job.a:
        # Positional arguments have no names: the task's schema decides whether `args` is valid.
        payload = {"args": job.a, **job.k}
    key = f"arq:{arq_id}"
    if job.f in crons or job.f.startswith("cron:"):
        key = f"{key}:{int(due)}"
    entry = entries.get(job.f)
    if entry is None:
        options = JobOptions(timeout=DEFAULT_TIMEOUT_SECONDS, retry=RetryPolicy().model_dump())
    else:
        options = JobOptions(timeout=entry.defaults["timeout"], retry=entry.defaults["retry"])
    return Submission(
        id="",  # set where the time is known
        task=job.f,
        payload=msgspec.json.encode(payload),
        options=options,
        version=entry.version if entry else 1,
        queue=entry.queue if entry else "default",
        run_at=due,
        idempotency_key=key,
    )


class ArqJobs:
    """Moves jobs from arq's queue to ours. Those that are not JSON stay there, and are logged once.

    `seen`: arq's queue has had jobs for us.
    """

    def __init__(
        self, queue: Queue, tasks: Mapping[str, Task], crons: Collection[str], *, on_cluster: bool
    ) -> None:
        self.seen = False
        self._queue, self._crons = queue, crons
        self._entries = {name: task.entry for name, task in tasks.items()}
        self._skipped: set[str] = set()
        # Monotonic time. The nodes of a cluster share arq's keys, so there no arq client is served.
        self._next_poll = math.inf if on_cluster else 0.0

    async def adopt(self) -> int:
        """Move a batch of jobs, and return how many there were."""
        if time.monotonic() < self._next_poll:
            return 0
        while True:
            found = {
                arq_id: to_submission(arq_id, due, data, self._entries, self._crons)
                for arq_id, due, data in await self._queue.arq.pending(skip=self._skipped)
                if data is not None  # else another worker adopted it, or it expired after arq's day
            }
            jobs = [(arq_id, job) for arq_id, job in found.items() if job is not None]
            if jobs:
                self.seen = True
                now = await self._queue.clock.sync()
                await self._queue.arq.adopt(
                    [(id, msgspec.structs.replace(job, id=new_id(now))) for id, job in jobs]
                )
                return len(jobs)
            if not found or len(self._skipped) + len(found) > MAX_SKIPPED:
                self._next_poll = time.monotonic() + POLL_SECONDS
                return 0
            # Jobs for us may be behind these.
            self._skipped.update(found)
            log.warning("skipping arq jobs that are not JSON", arq_ids=list(found))

    async def tick(self, heart_beat: Callable[[], Awaitable[None]]) -> None:
        """Run arq's cron until cancelled: `heart_beat` enqueues what is due, `adopt` moves it."""
        while True:
            try:
                await heart_beat()
                await self.adopt()
            except (Unavailable, RedisError, OSError) as error:
                log.warning("Redis is unavailable", during="cron", error=type(error).__name__)
            await asyncio.sleep(POLL_SECONDS)


async def stand_in(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> None:
    """Stands for every task in arq's registry, which needs only names: arq never calls it."""


def cron_task(cron: CronJob, ctx: dict[Any, Any]) -> Task:
    """A task that runs a cron job with arq's context. Its ticks come through arq's queue."""

    @task(
        "cron", timeout=cron.timeout_s or 300.0, retry=RetryPolicy(max_attempts=cron.max_tries or 1)
    )
    async def tick(job: Job, payload: dict[str, Any]) -> Any:  # noqa: ARG001 - a tick has no arguments
        return await cron.coroutine(
            {**ctx, "job_id": job.id, "job_try": job.attempt, "score": job.stamp // 1000}
        )

    made = task_of(tick)
    return dataclasses.replace(made, entry=msgspec.structs.replace(made.entry, name=cron.name))
