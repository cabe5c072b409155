"""Runs a task in a test, without Redis: `await run(greet, {"name": "Ada"}) == "Hello, Ada"`."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import BaseModel

from tandem_shared.files.uploads import save_upload
from tandem_shared.jobs.ids import new_id
from tandem_shared.settings import load_settings
from tandem_worker.encoding import encode
from tandem_worker.executors.execute import execute
from tandem_worker.executors.pools import Pools, open_pools
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.locks import LocalLocks
from tandem_worker.jobs.logs import job_logging
from tandem_worker.jobs.steps import LocalSteps
from tandem_worker.resources import Resources, open_resources
from tandem_worker.task import Task, task_of

__all__ = ["Bench", "LocalLocks", "Recorder", "open_bench", "run", "upload"]


class Recorder:
    """Keeps what a task reports, decoded: `progressed`, `items` (output), `lines` (log), `files`.

    `steps` has the results of its steps, as JSON values by name. A second run with the same
    recorder is a later attempt, and so is a first one with `Recorder(steps={"charge": "ch_1"})`.
    """

    def __init__(self, steps: dict[str, Any] | None = None) -> None:
        self.steps: dict[str, Any] = {} if steps is None else steps
        self.progressed: list[dict[str, Any]] = []
        self.items: list[Any] = []
        self.lines: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}  # that the task wrote, by name, once it has ended

    async def progress(self, body: bytes) -> None:
        self.progressed.append(msgspec.json.decode(body))

    async def output(self, item: bytes) -> None:
        self.items.append(msgspec.json.decode(item))

    def log(self, body: bytes) -> None:
        self.lines.append(msgspec.json.decode(body))


async def find_no_job(id: str, *, tenant: str) -> None:
    """Find no other job, since a test has only its own."""


@dataclass(frozen=True)
class Bench(Resources):
    """What a worker shares among its tasks, and the threads and processes in which it runs them."""

    pools: Pools


@asynccontextmanager
async def open_bench(**settings: Any) -> AsyncIterator[Bench]:
    """Resources for several runs that share uploads, from the environment and the given settings.

    Files are kept in memory unless `store_url` is given.
    """
    built = load_settings(**{"store_url": "memory://", **settings})
    async with open_pools(built) as pools, open_resources(built) as resources:
        yield Bench(**vars(resources), pools=pools)


async def upload(resources: Resources, data: bytes, name: str | None = None) -> FileRef:
    """Store a file as a client's upload; the reference goes into a payload."""
    saved = await save_upload(
        resources.files, data, tenant="default", now=time.time, keep=86400, name=name
    )
    return FileRef(file=saved.id, name=name, size=saved.size, sha256=saved.sha256)


async def run(
    task: Callable[..., Any] | Task,
    payload: Any = None,
    *,
    attempt: int = 1,
    job_id: str | None = None,
    resources: Bench | None = None,
    sink: Recorder | None = None,
    locks: LocalLocks | None = None,
) -> Any:
    """Run a task where a worker would, within its timeout, and return its result.

    `payload` is what a client would send (`None`: `{}`), with models and file references anywhere
    in it, or the payload model itself. Runs that get the same `locks` share them. Raises what the
    task raises, pydantic.ValidationError for an invalid payload, TypeError for a result that is not
    JSON, and TimeoutError.
    """
    task = task_of(task)
    sink = sink or Recorder()
    async with AsyncExitStack() as stack:
        stack.enter_context(job_logging("info"))
        if resources is None:
            resources = await stack.enter_async_context(open_bench())
        job = Job(
            id=job_id or new_id(),
            task=task.name,
            deadline=time.monotonic() + task.timeout,
            attempt=attempt,
            max_attempts=task.retry.max_attempts,
            stamp=time.time_ns() // 1000,
            sink=sink,
            resources=resources,
            step_store=LocalSteps(sink.steps),
            lock_store=locks or LocalLocks(),
            find=find_no_job,
            in_thread=resources.pools.steps.call,
        )
        try:
            async with asyncio.timeout(task.timeout):
                result = await execute(task, job, _decode(task, payload), resources.pools)
        finally:
            for file in job.written:
                sink.files[file.name] = await job.files.read({"file": f"{job.id}/{file.name}"})
    body = task.encode(result)
    if not isinstance(result, msgspec.Raw):
        return result
    adapter = task.signature.result
    return msgspec.json.decode(body) if adapter is None else adapter.validate_json(body)


def _decode(task: Task, payload: Any) -> Any:
    if isinstance(payload, BaseModel) and task.kind != "process":
        return payload  # JSON would mask its secrets
    return task.decode(encode({} if payload is None else payload))
