"""The output of a job whose worker is played by the test."""

import itertools
from typing import Any

import msgspec

from tandem_shared.catalogue import digest
from tandem_shared.files.store import FileStore
from tandem_shared.queue.messages import Chunk, Claimed, WorkerInfo
from tandem_shared.streams.segments import read_segment
from tandem_worker import task
from tandem_worker.runtime.metrics import WorkerMetrics
from tandem_worker.runtime.outbox import Outbox
from tandem_worker.runtime.output import JobOutput
from tandem_worker.task import task_of
from tests.worker.workers import Client


@task("talks")
async def talks() -> None:
    raise AssertionError("the test itself claims its job")


numbers = itertools.count(1)


async def claimed(client: Client, *, submit: bool = True) -> Claimed:
    """Claim a job, so that it runs as far as Redis knows: a new one, or the one that is due."""
    entry = task_of(talks).entry
    await client.queue.register(WorkerInfo("w", "host", 1, ("default",), 10, "1", 0.0), [entry])
    if submit:
        await client.submit(talks)
    claim = await client.queue.claim(
        "w", next(numbers), slots=1, tasks=digest([entry]), queues=["default"]
    )
    return claim.jobs[0]


class OutputProbe:
    """The output of a job, and how often the job turned out to be lost."""

    def __init__(
        self,
        client: Client,
        job: Claimed,
        store: FileStore,
        limit: int = 1 << 30,
        seconds: float = 60,
    ) -> None:
        self.client, self.job, self.store = client, job, store
        self.lost: list[str] = []  # causes
        observe = WorkerMetrics([], 1).observe_batch
        outbox = Outbox(client.queue, store, max_output_bytes=limit, observe=observe)
        self.output = JobOutput(outbox, job.id, job.token, self.lost.append, store_seconds=seconds)

    async def chunks(self) -> list[Chunk]:
        """All that was written, in Redis and in the file store."""
        queue, id = self.client.queue, self.job.id
        segments = await queue.segments(id, 0, 1000)
        found = [chunk for one in segments async for chunk, _ in read_segment(self.store, id, one)]
        return [*found, *await queue.output(id, 0, 100_000)]

    async def items(self, kind: str = "output") -> list[Any]:
        items = [
            item for chunk in await self.chunks() if chunk.type == kind for item in chunk.items
        ]
        return [msgspec.json.decode(item) for item in items]
