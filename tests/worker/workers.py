"""A worker in the test's process on a real Redis, and a client that watches its jobs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGTERM
from typing import Any

import msgspec
from pydantic_core import to_json

from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Record, Submission
from tandem_shared.jobs.states import State
from tandem_shared.queue.connections import connect
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import Settings
from tandem_worker.resources import open_resources
from tandem_worker.runtime.worker import Worker
from tandem_worker.task import task_of
from tests.conftest import eventually

GRACE_SECONDS = 0.2  # short, so that tests need not wait for code that ignores a cancel


class Client:
    """Submits jobs as the API would, and reads them."""

    def __init__(self, queue: Queue, redis: Any) -> None:
        self.queue, self.redis = queue, redis

    async def submit(self, function: Callable[..., Any], payload: Any = None, **given: Any) -> str:
        """The new job's id; `timeout` and `retry` (fields of the policy) replace the task's own."""
        entry = task_of(function).entry
        retry = {**entry.defaults["retry"], **given.pop("retry", {})}
        options = JobOptions(timeout=given.pop("timeout", entry.defaults["timeout"]), retry=retry)
        body = (
            payload if isinstance(payload, bytes) else to_json({} if payload is None else payload)
        )
        job = Submission(
            id=new_id(),
            task=entry.name,
            payload=body,
            options=options,
            version=entry.version,
            **given,
        )
        return (await self.queue.submit(job)).id

    async def record(self, id: str) -> Record:
        record = await self.queue.get(id)
        assert record is not None, f"job {id} does not exist"
        return record

    async def reaches(self, id: str, *states: State, timeout: float = 20.0) -> Record:
        """The record, once it is in one of these states."""

        async def there() -> bool:
            return (await self.record(id)).state in states

        await eventually(there, timeout)
        return await self.record(id)

    async def end(self, id: str) -> Record:
        """The final record; meanwhile the queue ticks as it does with an API."""

        async def ended() -> bool:
            await self.queue.tick()
            return (await self.record(id)).done

        await eventually(ended, 30.0)
        return await self.record(id)

    async def result(self, id: str) -> Any:
        """The result; the assertion shows the record if the job failed."""
        record = await self.end(id)
        assert record.state is State.SUCCEEDED, record
        return msgspec.json.decode(record.result or b"null")

    async def error(self, id: str) -> dict[str, Any]:
        """The error of a failed job."""
        record = await self.end(id)
        assert record.state is State.FAILED, record
        error: dict[str, Any] = msgspec.json.decode(record.error or b"null")
        return error

    async def items(self, id: str, kind: str = "output") -> list[Any]:
        """All output of a kind, decoded."""
        found: list[Any] = []
        after = 0
        while chunks := await self.queue.output(id, after):
            found += [
                msgspec.json.decode(item)
                for one in chunks
                if one.type == kind
                for item in one.items
            ]
            after = chunks[-1].stamp
        return found


def outcomes(record: Record) -> list[str | None]:
    return [attempt.outcome for attempt in record.attempts]


@asynccontextmanager
async def open_client(url: str, lease: float = 1.0) -> AsyncIterator[Client]:
    redis = connect(url)
    queue = Queue(redis, lease=lease, grace=GRACE_SECONDS)
    try:
        yield Client(queue, redis)
    finally:
        await queue.close()
        await redis.aclose()


def make_worker(url: str, directory: Path, *functions: Callable[..., Any], **given: Any) -> Worker:
    """A worker with these tasks; arguments that are not settings go to arq."""
    fields = {name: given.pop(name) for name in list(given) if name in Settings.model_fields}
    settings = Settings(
        **{"lease": 3.0, "drain": 0.0, "store_url": f"file://{directory}/store", **fields},
        redis_url=url,
    )
    tasks = {task_of(function).name: task_of(function) for function in functions}
    shell = {"handle_signals": False, **given}
    worker = Worker(
        settings=settings, tasks=tasks, resources=lambda: open_resources(settings), **shell
    )
    worker.queue.grace = GRACE_SECONDS
    return worker


@asynccontextmanager
async def working(
    url: str, directory: Path, *functions: Callable[..., Any], **given: Any
) -> AsyncIterator[Worker]:
    """A running worker with these tasks, ended at the end of the block."""
    worker = make_worker(url, directory, *functions, **given)
    running = asyncio.create_task(worker.async_run())
    ready = asyncio.create_task(worker.ready.wait())
    try:
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        yield worker
        if not running.done():
            worker.handle_sig(SIGTERM)
        await running
    finally:
        ready.cancel()
        running.cancel()
        await asyncio.wait({running})
        await worker.close()
