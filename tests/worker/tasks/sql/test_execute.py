"""`sql.execute` as a job, on SQLite and PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from pydantic import ValidationError

from tandem_worker.errors import TaskError
from tandem_worker.task import task_of
from tandem_worker.tasks.sql.execute import SqlExecute
from tandem_worker.tasks.sql.execute import execute as sql_execute
from tandem_worker.tasks.sql.query import query as sql_query
from tests.conftest import eventually
from tests.worker.bench import Bench, open_bench
from tests.worker.connectors.sql.databases import Database

SCHEMA = jsonschema_rs.validator_for(task_of(sql_execute).entry.payload_schema)


@pytest.fixture
async def bench(database: Database, tmp_path: Path) -> AsyncIterator[Bench]:
    await database.rows("CREATE TABLE stock (item text PRIMARY KEY, amount integer NOT NULL)")
    await database.rows("INSERT INTO stock VALUES ('cup', 10), ('pot', 20)")
    urls = {
        "main": database.url,
        "shop": f"{database.url}?mode=rw",
        "one": f"{database.url}?mode=rw&maxsize=1",
    }
    if database.sqlite:
        del urls["one"]
    async with open_bench(tmp_path, sql=urls) as opened:
        yield opened


async def execute(bench: Bench, *statements: Any, connection: str = "shop", **job: Any) -> Any:
    listed = [{"sql": one} if isinstance(one, str) else one for one in statements]
    return await bench.run(sql_execute, {"connection": connection, "statements": listed}, **job)


async def failure(bench: Bench, *statements: Any, **more: Any) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await execute(bench, *statements, **more)
    return caught.value


async def test_statements_are_applied_in_order(bench: Bench, database: Database) -> None:
    result = await execute(
        bench,
        {"sql": "INSERT INTO stock VALUES (:item, :n)", "params": {"item": "mug", "n": 5}},
        {"sql": "UPDATE stock SET amount = amount + 1"},
        {"sql": "DELETE FROM stock WHERE amount > 1000"},
        {
            "sql": "INSERT INTO stock VALUES (:item, :n)",
            "rows": [{"item": "a", "n": 1}, {"item": "b", "n": 2}],
        },
        "SELECT item FROM stock",
        "INSERT INTO stock SELECT item || '2', amount FROM stock RETURNING item",
    )
    assert result == {"rowcounts": [1, 3, 0, 2, 5, 5], "applied": "now"}
    assert sorted(await database.rows("SELECT * FROM stock WHERE length(item) = 3")) == [
        ("cup", 11),
        ("mug", 6),
        ("pot", 21),
    ]
    assert bench.recorder.progressed[-1] == {"current": 7, "total": 7, "message": None}


async def test_rows_with_the_databases_own_placeholders(bench: Bench, database: Database) -> None:
    text = (
        "INSERT INTO stock VALUES (?, ?)"
        if database.sqlite
        else "INSERT INTO stock VALUES ($1, $2)"
    )
    rows = [[f"item {n}", n] for n in range(500)]
    assert (await execute(bench, {"sql": text, "rows": rows}, {"sql": text, "rows": []}))[
        "rowcounts"
    ] == [500, 0]
    assert await database.rows("SELECT count(*), sum(amount) FROM stock") == [
        (502, 30 + sum(range(500)))
    ]


async def test_a_repeated_attempt_applies_nothing_and_returns_the_same_result(
    bench: Bench, database: Database
) -> None:
    work = "UPDATE stock SET amount = amount - 1"
    assert await execute(bench, work, id="job1", attempt=1) == {"rowcounts": [2], "applied": "now"}
    assert await execute(bench, work, id="job1", attempt=2) == {
        "rowcounts": [2],
        "applied": "before",
    }
    assert await execute(bench, work, id="job2") == {"rowcounts": [2], "applied": "now"}
    assert await database.rows("SELECT sum(amount) FROM stock") == [(26,)]
    marks = await database.rows("SELECT job, step, result FROM tandem_applied ORDER BY job")
    assert marks == [("job1", "sql.execute", "[2]"), ("job2", "sql.execute", "[2]")]


async def test_simultaneous_attempts_apply_once(bench: Bench, database: Database) -> None:
    work = "UPDATE stock SET amount = amount - 1"
    results = await asyncio.gather(*(execute(bench, work, id="same") for _ in range(4)))
    assert sorted(one["applied"] for one in results) == ["before", "before", "before", "now"]
    assert [one["rowcounts"] for one in results] == [[2]] * 4
    assert await database.rows("SELECT sum(amount) FROM stock") == [(28,)]


async def test_simultaneous_jobs_create_the_marker_table_once(
    bench: Bench, database: Database
) -> None:
    work = "UPDATE stock SET amount = amount - 1"
    results = await asyncio.gather(*(execute(bench, work, id=f"job{n}") for n in range(6)))
    assert [one["applied"] for one in results] == ["now"] * 6
    assert await database.rows("SELECT sum(amount) FROM stock") == [(18,)]


async def test_a_failure_applies_nothing(bench: Bench, database: Database) -> None:
    error = await failure(
        bench, "DELETE FROM stock", "INSERT INTO stock VALUES ('cup', NULL)", id="job"
    )
    assert (error.type, error.retryable) == ("sql_error", False)
    assert await database.rows("SELECT count(*) FROM stock") == [(2,)]
    assert await database.rows("SELECT count(*) FROM tandem_applied") == [(0,)]
    assert (await execute(bench, "DELETE FROM stock", id="job"))["applied"] == "now"


async def test_a_read_only_connection_refuses_statements(bench: Bench, database: Database) -> None:
    error = await failure(bench, "DELETE FROM stock", connection="main")
    assert (error.type, error.retryable) == ("read_only", False)
    assert "mode=rw" in error.message
    assert await database.rows("SELECT count(*) FROM stock") == [(2,)]


@pytest.mark.parametrize(
    "text",
    [
        "COMMIT",
        "/* a */ commit",
        "-- a\nROLLBACK",
        "END",
        "BEGIN",
        "SAVEPOINT a",
        "UPDATE stock SET amount = 0; COMMIT",
        "DELETE FROM stock; DELETE FROM stock",
        "DELETE FROM tandem_applied",
        "",
    ],
)
async def test_no_statement_ends_the_transaction(
    bench: Bench, database: Database, text: str
) -> None:
    if not text:
        with pytest.raises(ValidationError):
            await execute(bench, text)
        return
    error = await failure(bench, "UPDATE stock SET amount = 1", text, id="job")
    assert (error.type, error.retryable) == ("sql_error", False)
    assert await database.rows("SELECT sum(amount) FROM stock") == [(30,)]


@pytest.mark.parametrize(
    "text",
    [
        "START TRANSACTION",
        "ABORT",
        "PREPARE TRANSACTION 'a'",
        "COPY stock TO PROGRAM 'cat'",
        "--\rCOMMIT /*\n x */",
        "--\rROLLBACK /*\n x */",
        "--\rCOPY (SELECT 1) TO PROGRAM 'id' /*\n x */",
        "COPY stock FROM STDIN",
    ],
)
async def test_postgresqls_other_ways_out_are_refused(
    bench: Bench, database: Database, text: str
) -> None:
    error = await failure(bench, "UPDATE stock SET amount = 1", text)
    assert (error.type, error.retryable) == ("sql_error", False)
    assert await database.rows("SELECT sum(amount) FROM stock") == [(30,)]


@pytest.mark.parametrize(
    "text",
    ["ATTACH ':memory:' AS x", "PRAGMA user_version = 7", "CREATE TEMP TABLE a (b)", "VACUUM"],
)
async def test_sqlites_other_ways_out_are_refused(
    bench: Bench, database: Database, text: str
) -> None:
    if database.sqlite:
        error = await failure(bench, "UPDATE stock SET amount = 1", text)
        assert (error.type, error.retryable) == ("sql_error", False)
    assert await database.rows("SELECT sum(amount) FROM stock") == [(30,)]


async def test_the_schema_can_be_changed(bench: Bench, database: Database) -> None:
    result = await execute(
        bench,
        "CREATE TABLE sales (item text REFERENCES stock, price numeric)",
        "CREATE INDEX by_item ON sales (item)",
        "CREATE VIEW dear AS SELECT item FROM sales WHERE price > 5",
        "ALTER TABLE sales ADD COLUMN at text",
        "INSERT INTO sales VALUES ('cup', 7, 'now')",
        "DROP INDEX by_item",
    )
    assert result["rowcounts"] == [0, 0, 0, 0, 1, 0]
    assert await database.rows("SELECT item FROM dear") == [("cup",)]


async def test_the_next_job_gets_a_reset_session(bench: Bench, database: Database) -> None:
    if database.sqlite:
        return
    temporary = "CREATE TEMP TABLE stock (item text)"
    await execute(bench, "SET search_path = pg_catalog", temporary, connection="one")
    role = {"connection": "one", "sql": "SELECT set_config('role', 'pg_monitor', false) AS a"}
    await bench.run(sql_query, role)
    text = "SELECT current_role = session_user AS same, count(*) AS n FROM stock"
    result = await bench.run(sql_query, {"connection": "one", "as": "result", "sql": text})
    assert result["rows"] == [{"same": True, "n": 2}]


async def test_a_cancelled_job_applies_nothing(bench: Bench, database: Database) -> None:
    slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    task = asyncio.create_task(
        execute(bench, "UPDATE stock SET amount = 1", *["SELECT 1"] * 5000, slow, id="job")
    )
    await eventually(lambda: bench.recorder.progressed)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await database.rows("SELECT sum(amount) FROM stock") == [(30,)]
    assert (await execute(bench, "UPDATE stock SET amount = 2", id="job"))["applied"] == "now"


@pytest.mark.parametrize(
    "statements",
    [
        [],
        [{"sql": "SELECT 1", "params": [1], "rows": [[1]]}],
        [{"sql": " "}],
        [{"sql": "SELECT 1", "rows": [1]}],
        [{"sql": "SELECT 1", "more": 1}],
        [{}],
    ],
)
def test_invalid_payloads_are_refused_by_model_and_schema(statements: Any) -> None:
    payload = {"connection": "shop", "statements": statements}
    assert not SCHEMA.is_valid(payload)
    with pytest.raises(ValidationError):
        SqlExecute.model_validate(payload)
