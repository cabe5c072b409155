"""Jobs that plain arq clients enqueue: `await pool.enqueue_job("http.request", url="https://…")` runs here too.

The client's pool needs this JSON serializer, `create_pool(…, job_serializer=serialize,
job_deserializer=deserialize)`, or any that writes the same as JSON. Keyword arguments are the
payload; a single positional object is one too.
"""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import msgspec
import structlog
from arq.cron import CronJob
from redis.exceptions import RedisError

from tandem_shared import catalogue
from tandem_shared.errors import Unavailable
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Submission
from tandem_shared.queue.queue import Queue
from tandem_shared.retry import RetryPolicy
from tandem_worker.jobs.job import Job
from tandem_worker.task import Task, of, task

MOST = 1000  # jobs left alone that are remembered
# seconds to the next look, when what lies there is nothing for us, and between two of arq's ticks
PAUSE = 0.5

log = structlog.get_logger("worker")


def serialize(job: dict[str, Any]) -> bytes:
    """arq's job as JSON. An exception among its values is written as its text."""
    return msgspec.json.encode(job, enc_hook=_text)


def _text(value: Any) -> str:
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def deserialize(data: bytes) -> dict[str, Any]:
    """The inverse of `serialize`."""
    job: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    return job


def submission(
    foreign: str,
    due: float,
    data: bytes,
    entries: Mapping[str, catalogue.CatalogueEntry],
    crons: Collection[str] = (),
) -> Submission | None:
    """Our job for arq's; None if its bytes are no JSON of an arq job, and are left to whoever wrote them.

    `due` (seconds since the epoch) is when arq would have started it. The id that arq knows it by
    becomes its idempotency key, so a job enqueued twice under one id runs once, for as long as its
    record is kept; a cron job, whose id may be the same each time, once a tick.
    """
    try:
        job = deserialize(data)
        task, args, kwargs = job["f"], job["a"], job["k"]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        return None
    if not isinstance(task, str) or not isinstance(args, list) or not isinstance(kwargs, dict):
        return None
    payload = kwargs
    if args:
        # Positional arguments have no names here: the task's own schema says whether it takes what
        # this makes of them.
        payload = (
            args[0]
            if len(args) == 1 and isinstance(args[0], dict) and not kwargs
            else {"args": args, **kwargs}
        )
    entry = entries.get(task)
    defaults: dict[str, Any] = (
        entry.defaults if entry else {"timeout": 30.0, "retry": RetryPolicy().model_dump()}
    )
    key = f"arq:{foreign}"
    if task in crons or task.startswith("cron:"):
        key = f"{key}:{int(due)}"
    return Submission(
        id=new_id(),
        task=task,
        payload=msgspec.json.encode(payload),
        options=JobOptions(timeout=defaults["timeout"], retry=defaults["retry"]),
        version=entry.version if entry else 1,
        queue=entry.queue if entry else "default",
        run_at=due,
        idempotency_key=key,
    )


class Adoption:
    """Moves the jobs of plain arq clients over, as far as they are JSON; the others are left alone, and told once.

    `needed`: there have been such jobs.
    """

    def __init__(
        self,
        queue: Queue,
        entries: Mapping[str, catalogue.CatalogueEntry],
        crons: Collection[str] = (),
    ) -> None:
        self.needed = False
        self._queue, self._entries, self._crons = queue, entries, crons
        self._left_alone: set[str] = set()
        self._again = 0.0  # monotonic time before which there is nothing to look for

    async def adopt(self) -> int:
        """One portion of them; how many there were."""
        if time.monotonic() < self._again:
            return 0
        while True:
            jobs, strangers = await self._look()
            if jobs:
                self.needed = True
                await self._queue.arq.adopt(jobs)
                return len(jobs)
            if not strangers or len(self._left_alone) + len(strangers) > MOST:
                self._again = time.monotonic() + PAUSE
                return 0
            # They are in the way of what may lie behind them.
            self._left_alone.update(strangers)
            log.warning(
                "jobs of another arq client are no JSON and are left alone", arq_ids=strangers
            )

    async def tick(self, heart_beat: Callable[[], Awaitable[None]]) -> None:
        """arq's cron, until it is cancelled: `heart_beat` enqueues in arq's own queue what is due, and we adopt it."""
        while True:
            try:
                await heart_beat()
                await self.adopt()
            except (Unavailable, RedisError, OSError) as error:
                log.warning("Redis is away", during="cron", error=type(error).__name__)
            await asyncio.sleep(PAUSE)

    async def _look(self) -> tuple[list[tuple[str, Submission]], list[str]]:
        jobs, strangers = [], []
        for foreign, due, data in await self._queue.arq.pending(skip=self._left_alone):
            if data is None:
                # another worker has just adopted it, or it has expired, as arq's jobs do after a
                # day
                continue
            job = submission(foreign, due, data, self._entries, self._crons)
            if job is None:
                strangers.append(foreign)
            else:
                jobs.append((foreign, job))
        return jobs, strangers


async def stand_in(ctx: dict[Any, Any], *args: Any, **kwargs: Any) -> None:
    """What arq's registry holds for each task: names only, since running them is ours."""


def cron_task(cron: CronJob, ctx: dict[Any, Any]) -> Task:
    """A cron job of arq as a task: its coroutine gets arq's context. Its ticks come through arq's own queue."""

    @task(
        "cron", timeout=cron.timeout_s or 300.0, retry=RetryPolicy(max_attempts=cron.max_tries or 1)
    )
    async def tick(job: Job, payload: dict[str, Any]) -> Any:  # noqa: ARG001 - a tick has no arguments
        return await cron.coroutine(
            {**ctx, "job_id": job.id, "job_try": job.attempt, "score": job.stamp // 1000}
        )

    made = of(tick)
    return dataclasses.replace(made, entry=msgspec.structs.replace(made.entry, name=cron.name))
