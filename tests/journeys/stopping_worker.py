"""A worker that stops at a given point: `python -m tests.journeys.stopping_worker <notes> <at>`.

`at` is `before` or `after` the commit of the SQL transaction in which statements of the job have
run; `after` is also after MongoDB's server has done a write. It then notes that it is there and
goes no further, so that it can be killed. At `never` it does not stop. MongoDB's servers count as
having transactions: nx-27017 has them and does not say so.
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


class Noting:
    """A transaction that knows whether a statement of the job's own has run in it."""

    def __init__(self, inner: SqlTransaction) -> None:
        self._inner = inner
        self.worked = False

    async def execute(self, sql: str, params: Any = None) -> int:
        self.worked |= "tandem_applied" not in sql
        return await self._inner.execute(sql, params)

    async def loader(self, *given: Any, **options: Any) -> Any:
        self.worked = True
        return await self._inner.loader(*given, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Stopping:
    """A connection that stops beside the commit."""

    def __init__(self, inner: SqlConnection, notes: Path, at: str) -> None:
        self._inner, self._notes, self._at = inner, notes, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @asynccontextmanager
    async def transaction(self, *, timeout: float) -> AsyncIterator[Noting]:
        async with self._inner.transaction(timeout=timeout) as inner:
            noting = Noting(inner)
            yield noting
            if noting.worked and self._at == "before":
                await stop(self._notes, self._at)
        if noting.worked and self._at == "after":
            await stop(self._notes, self._at)


class StoppingMongo:
    """A MongoDB connection that stops when it has written."""

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
            stopping: Any = {name: Stopping(opened.sql(name), notes, at) for name in settings.sql}
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
