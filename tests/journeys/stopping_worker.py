"""A worker that stops at a commit: `python -m tests.journeys.stopping_worker <notes> <at>`.

`at` is `before` or `after` the commit of a SQL transaction with statements of the job; `after` is
also after a write to MongoDB; `never` does not stop. The worker creates the file `notes` where it
stops, so that a test can kill it there. nx-27017 has transactions without reporting them, so all
MongoDB servers are treated as having them.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tandem_shared.settings import load_settings
from tandem_worker.connectors.mongo.connection import MongoConnection
from tandem_worker.connectors.mongo.connections import MongoConnections
from tandem_worker.connectors.sql.connections import SqlConnection, SqlConnections, SqlTransaction
from tandem_worker.loader import load_tasks
from tandem_worker.resources import Resources, open_resources
from tandem_worker.runtime.worker import Worker


class RecordingTransaction:
    """A transaction that records whether a statement of the job has run in it."""

    def __init__(self, inner: SqlTransaction) -> None:
        self._inner = inner
        self.is_used = False

    async def execute(self, sql: str, params: Any = None) -> int:
        self.is_used |= "tandem_applied" not in sql
        return await self._inner.execute(sql, params)

    async def loader(self, *given: Any, **options: Any) -> Any:
        self.is_used = True
        return await self._inner.loader(*given, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class StoppingSql:
    """A SQL connection that stops before or after the commit."""

    def __init__(self, inner: SqlConnection, notes: Path, at: str) -> None:
        self._inner, self._notes, self._at = inner, notes, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @asynccontextmanager
    async def transaction(self, *, timeout: float) -> AsyncIterator[RecordingTransaction]:
        async with self._inner.transaction(timeout=timeout) as inner:
            transaction = RecordingTransaction(inner)
            yield transaction
            if transaction.is_used and self._at == "before":
                await stop(self._notes, self._at)
        if transaction.is_used and self._at == "after":
            await stop(self._notes, self._at)


class StoppingMongo:
    """A MongoDB connection that stops after a write."""

    def __init__(self, inner: MongoConnection, notes: Path, at: str) -> None:
        self._inner, self._notes, self._at = inner, notes, at

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if self._at != "after" or name not in ("insert", "update", "delete"):
            return method

        async def stopping(*given: Any, **named: Any) -> None:
            await method(*given, **named)
            await stop(self._notes, self._at)

        return stopping


async def stop(notes: Path, at: str) -> None:
    notes.write_text(at)
    await asyncio.Event().wait()


def main(notes: Path, at: str) -> None:
    settings = load_settings()

    @asynccontextmanager
    async def resources() -> AsyncIterator[Resources]:
        async with open_resources(settings) as opened:
            stopping: Any = {
                name: StoppingSql(opened.sql(name), notes, at) for name in settings.sql
            }
            mongo: Any = {}
            for name in settings.mongo:
                connection = opened.mongo(name)
                connection.has_transactions = True
                mongo[name] = StoppingMongo(connection, notes, at)
            yield replace(opened, sql=SqlConnections(stopping), mongo=MongoConnections(mongo))

    asyncio.set_event_loop(asyncio.new_event_loop())  # arq's Worker takes the current loop
    Worker(settings=settings, tasks=load_tasks(settings.tasks), resources=resources).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
