"""Workers that are killed just before or after the commit of their SQL transaction."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import asyncpg
import msgspec
import pytest

from tandem_shared.files.store import open_store
from tandem_shared.files.uploads import save_upload
from tandem_worker.tasks.sql.execute import execute as sql_execute
from tandem_worker.tasks.sql.imports import import_ as sql_import
from tests.conftest import eventually
from tests.journeys import stopping_worker
from tests.journeys.stage import RETRY, WorkerStage
from tests.worker.workers import Client, outcomes

Database = tuple[str, Callable[[str], Any]]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, stage: WorkerStage) -> Database:
    """The URL of a database, and a function that runs a query with the database's own driver."""
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
async def test_statements_are_applied_once_when_the_worker_is_killed_at_the_commit(
    stage: WorkerStage, client: Client, database: Database, at: str, applied: str
) -> None:
    url, ask = database
    await ask("CREATE TABLE sales (item text)")
    notes = stage.directory / "stopped"
    first = stage.worker(module=stopping_worker.__name__, arguments=(str(notes), at), sql__shop=url)
    statements = [
        {"sql": "INSERT INTO sales (item) VALUES ('cup')"},
        {"sql": "INSERT INTO sales (item) SELECT item FROM sales UNION ALL SELECT 'pot'"},
    ]
    id = await client.submit(
        sql_execute, {"connection": "shop", "statements": statements}, retry=RETRY
    )
    await eventually(notes.exists, 30)
    first.kill()
    assert len(await ask("SELECT item FROM sales")) == (3 if at == "after" else 0)
    stage.worker(sql__shop=url)
    assert await client.result(id) == {"rowcounts": [1, 2], "applied": applied}
    assert outcomes(await client.record(id)) == ["worker_lost", "succeeded"]
    assert sorted(await ask("SELECT item FROM sales")) == [("cup",), ("cup",), ("pot",)]
    assert await ask("SELECT job, step FROM tandem_applied") == [(id, "sql.execute")]


async def test_an_import_is_applied_once_and_keeps_its_bad_rows(
    stage: WorkerStage, client: Client, database: Database
) -> None:
    url, ask = database
    await ask("CREATE TABLE sales (item text PRIMARY KEY)")
    notes = stage.directory / "stopped"
    async with open_store(f"file://{stage.directory}/store") as store:
        file = await save_upload(
            store,
            b"item\ncup\npot\ncup\n",
            tenant="default",
            keep=600,
            name="sales.csv",
            now=time.time,
        )
    first = stage.worker(
        module=stopping_worker.__name__, arguments=(str(notes), "after"), sql__shop=url
    )
    payload = {"connection": "shop", "table": "sales", "source": {"file": file.id}, "max_bad": 1}
    id = await client.submit(sql_import, payload, retry=RETRY)
    await eventually(notes.exists, 30)
    first.kill()
    stage.worker(sql__shop=url)
    result = await client.result(id)
    assert (result["row_count"], result["bad_count"]) == (2, 1)
    record = await client.record(id)
    assert outcomes(record) == ["worker_lost", "succeeded"]
    assert sorted(await ask("SELECT item FROM sales")) == [("cup",), ("pot",)]
    # The second attempt imported nothing, and its files are the published ones.
    place = stage.directory / "store" / "jobs" / id / str(record.attempts[-1].began)
    assert msgspec.json.decode((place / result["bad_file"]["name"]).read_bytes())["line"] == 4
