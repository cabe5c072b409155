"""Runs built-in tasks with the worker's real resources, and facts of the job as a test needs."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from pydantic_core import to_json

from tandem_shared.files.uploads import save_upload
from tandem_shared.settings import LOOPBACK_NETWORKS, Settings
from tandem_worker.executors.execute import execute
from tandem_worker.executors.pools import Pools, open_pools
from tandem_worker.jobs.job import Job
from tandem_worker.jobs.locks import LocalLocks
from tandem_worker.jobs.steps import LocalSteps
from tandem_worker.resources import Resources, open_resources
from tandem_worker.task import task_of
from tandem_worker.testing import Recorder, find_no_job


def local_job(resources: Resources, sink: Any, pools: Pools, **facts: Any) -> Job:
    """A job whose steps and locks are kept in this process."""
    return Job(
        sink=sink,
        resources=resources,
        in_thread=pools.steps.call,
        **{
            "step_store": LocalSteps({}),
            "lock_store": LocalLocks(),
            "find": find_no_job,
            **facts,
        },
    )


class Bench:
    """Runs tasks as a worker does: payload from JSON, result to JSON."""

    def __init__(self, resources: Resources, pools: Pools) -> None:
        self.resources, self.pools = resources, pools
        self.recorder = Recorder()

    async def run(self, function: Callable[..., Any], payload: Any, **job: Any) -> Any:
        task = task_of(function)
        facts = {"id": "job", "deadline": time.monotonic() + 30, **job}
        context = local_job(self.resources, self.recorder, self.pools, task=task.name, **facts)
        value = task.decode(to_json(payload))
        return msgspec.json.decode(task.encode(await execute(task, context, value, self.pools)))

    async def upload(self, name: str, data: bytes, content_type: str) -> str:
        """Upload a file as a client would; return its id."""
        store = self.resources.files
        saved = await save_upload(
            store,
            data,
            tenant="default",
            keep=60,
            name=name,
            content_type=content_type,
            now=time.time,
        )
        return saved.id


@asynccontextmanager
async def open_bench(directory: Path, **settings: Any) -> AsyncIterator[Bench]:
    """Resources with files in `directory`; tasks may call loopback unless `http_allow` is given."""
    given = {"http_allow": LOOPBACK_NETWORKS, "store_url": f"file://{directory}/store", **settings}
    built = Settings(**given)
    async with open_pools(built) as pools, open_resources(built) as resources:
        yield Bench(resources, pools)
