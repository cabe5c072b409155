"""A queue, a ledger and a store to be examined."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis

from tandem_shared import catalogue
from tandem_shared.doctor.doctor import Check, Diagnosis, examine, queue_checks
from tandem_shared.doctor.files import FilesCheck
from tandem_shared.doctor.findings import Finding
from tandem_shared.doctor.ledger import LedgerCheck
from tandem_shared.files.store import FileStore
from tandem_shared.jobs.record import Record
from tandem_shared.jobs.states import State
from tandem_shared.ledger.ledger import Ledger, open_ledger
from tandem_shared.queue.messages import Claimed, Finish, WorkerInfo
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import load_settings
from tandem_worker.runtime.ledger import Projection
from tandem_worker.runtime.metrics import WorkerMetrics
from tests.shared.queue.model.shard import entry, job

ENTRY = entry("t")


class System:
    """A queue, a ledger, a store, and a worker that the test plays."""

    def __init__(self, queue: Queue, redis: Any, ledger: Ledger, store: FileStore) -> None:
        self.queue, self.redis, self.ledger, self.store = queue, redis, ledger, store
        self.projection = Projection(
            queue.events,
            queue.clock,
            ledger,
            load_settings(),
            consumer="one",
            running=[],
            metrics=WorkerMetrics([], 1),
        )
        self._calls = 0

    async def examine(
        self, *, fix: bool = False, max_lag: float = 60.0, store: FileStore | None = None
    ) -> Diagnosis:
        ledger = LedgerCheck(self.ledger, self.queue, max_lag=max_lag, margin=0)
        checks: dict[str, Check] = {
            **queue_checks(self.queue.integrity),
            "the ledger": ledger,
            "the file store": FilesCheck(store or self.store, self.queue, ledger, min_age=-1),
        }
        return await examine(checks, pause=0, fix=fix)

    async def found(self) -> list[tuple[str, str]]:
        return [(one.code, one.subject) for one in (await self.examine()).findings]

    async def heal(self) -> list[Finding]:
        """The findings of --fix, after which nothing is found any more."""
        findings = (await self.examine(fix=True)).findings
        assert not await self.found()
        return findings

    async def add(self) -> str:
        return (await self.queue.submit(job())).id

    async def claim(self) -> Claimed:
        self._calls += 1
        digest = catalogue.digest([ENTRY])
        return (
            await self.queue.claim("w", self._calls, slots=1, tasks=digest, queues=["default"])
        ).jobs[0]

    async def end(self, claimed: Claimed, files: bytes = b"") -> str:
        await self.queue.finish(
            [Finish(claimed.id, claimed.token, State.SUCCEEDED, "succeeded", b"1", files=files)]
        )
        return claimed.id

    async def project(self) -> None:
        """Let the ledger read all events."""
        await self.projection.step(0.01)

    async def row(self, id: str) -> Record:
        record = await self.ledger.get(id, tenant="default")
        assert record is not None
        return record

    def key(self, name: str) -> str:
        return f"{self.queue.prefix}{name}"


@asynccontextmanager
async def open_system(redis: Redis, url: str, store: FileStore) -> AsyncIterator[System]:
    queue = Queue(redis)
    info = WorkerInfo(
        id="w", host="h", pid=7, queues=("default",), concurrency=1, version="1", started_at=1.5
    )
    await queue.register(info, [ENTRY])
    await queue.tick()
    await queue.events.join(1 << 30)
    async with open_ledger(load_settings(database_url=url)) as ledger:
        yield System(queue, redis, ledger, store)
    await queue.close()
