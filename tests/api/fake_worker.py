"""A worker that a test drives: it publishes tasks, claims jobs, reports, and ends attempts."""

from typing import Any

import msgspec

from tandem_shared import catalogue
from tandem_shared.jobs.record import Record
from tandem_shared.jobs.states import State
from tandem_shared.queue.messages import Claimed, Finish, Report, WorkerInfo
from tandem_shared.queue.queue import Queue

ANY = catalogue.CatalogueEntry(
    name="t.any",
    summary="Takes anything.",
    payload_schema={"type": "object"},
    result_schema={},
    defaults={
        "timeout": 30.0,
        "priority": "normal",
        "retry": {"max_attempts": 3, "backoff": "fixed", "base": 1.0},
    },
)
STRICT = catalogue.CatalogueEntry(
    name="t.strict",
    summary="Takes a URL.",
    queue="slow",
    payload_schema={
        "$defs": {
            "Node": {
                "type": "object",
                "properties": {"value": {"type": "integer"}, "next": {"$ref": "#/$defs/Node"}},
                "additionalProperties": False,
            }
        },
        "type": "object",
        "properties": {
            "url": {"type": "string", "minLength": 3},
            "method": {"enum": ["GET", "POST"]},
            "node": {"$ref": "#/$defs/Node"},
            "size": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
        },
        "required": ["url"],
        "additionalProperties": False,
    },
    result_schema={"type": "object"},
    defaults={
        "timeout": 60.0,
        "priority": "low",
        "retry": {"max_attempts": 5, "base": 2.0, "cap": 300.0},
    },
    example={"url": "https://example.org/"},
)


class FakeWorker:
    """A worker without tasks to run: the test calls each of its steps."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.entries: list[catalogue.CatalogueEntry] = []
        self._claims = 0
        self._reports: dict[str, int] = {}

    async def publish(self, *entries: catalogue.CatalogueEntry) -> None:
        """Publishes these tasks in addition to the earlier ones."""
        self.entries += entries
        info = WorkerInfo(
            id="hand-1",
            host="here",
            pid=4711,
            queues=("default", "slow"),
            concurrency=10,
            version="1",
            started_at=1e9,
        )
        await self.queue.register(info, self.entries)

    async def claim(self, slots: int = 10) -> Claimed:
        """Claims the only job that is due, or that fits into `slots`."""
        self._claims += 1
        claim = await self.queue.claim(
            "hand-1",
            self._claims,
            slots=slots,
            tasks=catalogue.digest(self.entries),
            queues=("default", "slow"),
        )
        (claimed,) = claim.jobs
        return claimed

    async def drain(self) -> None:
        """Claims every job that is due and ends it as succeeded."""
        self._claims += 1
        claim = await self.queue.claim(
            "hand-1",
            self._claims,
            slots=100,
            tasks=catalogue.digest(self.entries),
            queues=("default", "slow"),
        )
        for claimed in claim.jobs:
            await self.succeed(claimed)

    async def report(self, claimed: Claimed, kind: str, *values: Any) -> None:
        """Reports progress, a log entry, or output items in one chunk."""
        number = self._reports[claimed.token] = self._reports.get(claimed.token, 0) + 1
        body = b"\n".join(msgspec.json.encode(value) for value in values)
        report = Report(claimed.id, claimed.token, number, kind, body)
        # Limits this high keep everything in Redis: this worker archives nothing.
        (answer,) = await self.queue.report(
            [report], limit=1 << 30, archive_from=1 << 30, max_tail=1 << 30
        )
        assert answer.word == "ok"

    async def succeed(self, claimed: Claimed, result: Any = None, *, answer: str = "ok") -> None:
        body = msgspec.json.encode(result)
        assert await self.queue.finish(
            [Finish(claimed.id, claimed.token, State.SUCCEEDED, "succeeded", body)]
        ) == [answer]

    async def fail(self, claimed: Claimed, to: State = State.FAILED) -> None:
        """Ends the attempt as failed: the job is `failed`, or `retrying` without delay."""
        body = msgspec.json.encode(
            {"type": "card", "message": "no", "retryable": True, "attempt": claimed.attempt}
        )
        assert await self.queue.finish([Finish(claimed.id, claimed.token, to, "failed", body)]) == [
            "ok"
        ]

    async def record(self, id: str) -> Record:
        record = await self.queue.get(id)
        assert record is not None
        return record
