"""A worker is killed beside the commit of its SQL: what was applied is not applied again, what was not is."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import Any

import asyncpg
import pytest

from tests.conftest import eventually
from tests.journeys import stopping_worker
from tests.journeys.test_crashes import LEASE, MANY, Stage
from tests.journeys.test_crashes import stage as stage  # noqa: PLC0414 - a fixture is found by its name
from tests.worker.workers import Client, open_client, outcomes
from worker.tasks import sql


@pytest.fixture
async def client(stage: Stage) -> AsyncIterator[Client]:
    await stage.redis()
    async with open_client(stage.server.url, LEASE) as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, stage: Stage) -> tuple[str, Callable[[str], Any]]:
    """URL, and the database's own client: the rows of a query."""
    if request.param == "sqlite":
        path = stage.directory / "shop.db"

        async def ask_sqlite(text: str) -> list[tuple[Any, ...]]:
            with closing(sqlite3.connect(path)) as connection, connection:
                return connection.execute(text).fetchall()

        return f"sqlite://{path}?mode=rw", ask_sqlite
    url = str(request.getfixturevalue("postgres"))

    async def ask_postgres(text: str) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(text)]
        finally:
            await connection.close()

    return f"{url}?mode=rw", ask_postgres


@pytest.mark.parametrize(("at", "applied"), [("after", "before"), ("before", "now")])
async def test_a_worker_killed_beside_the_commit_applies_nothing_twice(
    stage: Stage, client: Client, database: tuple[str, Callable[[str], Any]], at: str, applied: str
) -> None:
    url, ask = database
    await ask("CREATE TABLE sales (item text)")
    notes = stage.directory / "stopped"
    first = stage.worker(module=stopping_worker.__name__, arguments=(str(notes), at), sql__shop=url)
    statements = [
        {"sql": "INSERT INTO sales (item) VALUES ('cup')"},
        {"sql": "INSERT INTO sales (item) SELECT item FROM sales UNION ALL SELECT 'pot'"},
    ]
    id = await client.submit(sql.execute, {"connection": "shop", "statements": statements}, retry=MANY)
    await eventually(notes.exists, 30)
    first.kill()
    assert len(await ask("SELECT item FROM sales")) == (3 if at == "after" else 0)
    stage.worker(sql__shop=url)
    assert await client.result(id) == {"rowcounts": [1, 2], "applied": applied}
    assert outcomes(await client.record(id)) == ["worker_lost", "succeeded"]
    assert sorted(await ask("SELECT item FROM sales")) == [("cup",), ("cup",), ("pot",)]
    assert await ask("SELECT job, step FROM tandem_applied") == [(id, "sql.execute")]
