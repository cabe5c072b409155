"""`sql.query` on SQLite: the authorizer, types, locks and cancellation."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from tandem_worker.connectors.sql.sqlite.connection import SqliteConnection
from tandem_worker.errors import TaskError
from tandem_worker.tasks.sql.query import query as sql_query
from tests.conftest import eventually
from tests.worker.bench import Bench, open_bench

ENDLESS = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
    " SELECT count(*) AS count FROM n"
)


def connection_threads() -> int:
    """Threads but for those that asyncio keeps for `to_thread`."""
    return sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate())


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "notes.db", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE notes (a)")
        connection.execute("INSERT INTO notes VALUES (1)")
        yield connection


@pytest.fixture
async def bench(database: sqlite3.Connection, tmp_path: Path) -> AsyncIterator[Bench]:
    url = f"sqlite://{tmp_path}/notes.db"
    urls = {
        "main": url,
        "writable": f"{url}?mode=rw",
        "impatient": f"{url}?busy_timeout=10",
        "four_slashes": f"sqlite:///{tmp_path}/notes.db",  # how SQLAlchemy writes an absolute path
        "absent": f"sqlite://{tmp_path}/absent.db",
    }
    async with open_bench(tmp_path, sql=urls) as opened:
        yield opened


async def query(bench: Bench, text: str, params: Any = None, connection: str = "main") -> Any:
    payload = {"connection": connection, "sql": text, "params": params, "as": "result"}
    return (await bench.run(sql_query, payload))["rows"]


async def failure(
    bench: Bench, text: str, params: Any = None, connection: str = "main"
) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await query(bench, text, params, connection)
    return caught.value


async def test_an_absolute_path_may_have_four_slashes(bench: Bench) -> None:
    assert await query(bench, "SELECT a FROM notes", connection="four_slashes") == [{"a": 1}]


@pytest.mark.parametrize("connection", ["main", "writable"])
@pytest.mark.parametrize(
    "text",
    [
        "ATTACH '{other}' AS other",
        "attach database '{other}' as other",
        "DETACH main",
        "PRAGMA query_only = off",
        "PRAGMA writable_schema = 1",
        "PRAGMA user_version = 7",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA database_list",
        "PRAGMA temp_store_directory = '/'",
        "SELECT * FROM pragma_database_list",
        "SELECT load_extension('x')",
        "SELECT fts3_tokenizer('simple')",
        "SELECT fts3_tokenizer('simple', x'4141414141414141')",
        "SELECT FTS3_Tokenizer('simple')",
        "SELECT sqlite_compileoption_get(0)",
        "CREATE TEMP TABLE kept (a)",
        "CREATE TEMP VIEW kept AS SELECT 1",
        "CREATE TABLE kept (a)",
        "CREATE VIRTUAL TABLE kept USING fts5(a)",
        "DROP TABLE notes",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT a",
        "RELEASE a",
        "VACUUM INTO '{other}'",
        "REINDEX",
        "ANALYZE",
    ],
)
async def test_no_statement_leaves_the_file_or_outlives_itself(
    bench: Bench, tmp_path: Path, text: str, connection: str
) -> None:
    other = tmp_path / "other.db"
    error = await failure(bench, text.format(other=other), connection=connection)
    assert (error.type, error.retryable) == ("sql_error", False)
    assert str(tmp_path) not in error.message
    assert not other.exists()
    assert await query(bench, "SELECT a FROM notes", connection=connection) == [{"a": 1}]


@pytest.mark.parametrize(
    ("text", "words"),
    [("ATTACH ':memory:' AS x", "ATTACH"), ("INSERT INTO notes VALUES (2)", "INSERT")],
)
async def test_the_error_names_what_is_not_allowed(bench: Bench, text: str, words: str) -> None:
    assert (await failure(bench, text)).message == f"{words} is not allowed on this connection"


@pytest.mark.parametrize(
    "text", ["PRAGMA table_info(notes)", "PRAGMA user_version", "SELECT * FROM pragma_table_list"]
)
async def test_pragmas_that_read_the_schema_are_allowed(bench: Bench, text: str) -> None:
    assert len(await query(bench, text)) > 0


@pytest.mark.parametrize("connection", ["main", "writable"])
async def test_virtual_tables_can_be_read(
    bench: Bench, database: sqlite3.Connection, connection: str
) -> None:
    database.execute("CREATE VIRTUAL TABLE words USING fts5(word)")
    database.execute("INSERT INTO words VALUES ('hello world')")
    database.execute("CREATE VIRTUAL TABLE boxes USING rtree(id, low, high)")
    database.execute("INSERT INTO boxes VALUES (1, 2, 3)")
    assert (
        len(await query(bench, "SELECT value FROM json_each('[1, 2]')", connection=connection)) == 2
    )
    assert (
        len(
            await query(
                bench, "SELECT word FROM words WHERE words MATCH 'hello'", connection=connection
            )
        )
        == 1
    )
    assert len(await query(bench, "SELECT id FROM boxes WHERE low < 3", connection=connection)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "UPDATE sqlite_master SET sql = '' RETURNING 1",
        "DELETE FROM words RETURNING 1",
        "DELETE FROM boxes RETURNING 1",
        "INSERT INTO boxes_node VALUES (9, x'') RETURNING 1",
        "INSERT INTO words(words) VALUES ('rebuild') RETURNING 1",
    ],
)
async def test_internal_tables_cannot_be_written(
    bench: Bench, database: sqlite3.Connection, text: str
) -> None:
    database.execute("CREATE VIRTUAL TABLE words USING fts5(word)")
    database.execute("CREATE VIRTUAL TABLE boxes USING rtree(id, low, high)")
    before = list(database.iterdump())
    error = await failure(bench, text)
    assert (error.type, error.retryable) == ("sql_error", False)
    assert list(database.iterdump()) == before


async def test_a_missing_file_is_not_created(bench: Bench, tmp_path: Path) -> None:
    error = await failure(bench, "SELECT 1", connection="absent")
    assert (error.type, error.retryable) == ("sql_connection", True)
    assert "'absent'" in error.message
    assert str(tmp_path) not in error.message
    assert not (tmp_path / "absent.db").exists()


async def test_values_of_every_type(bench: Bench) -> None:
    text = "SELECT :a AS a, :b AS b, :c AS c, :d AS d, :e AS e, x'00ff' AS bytes, 9e999 AS high"
    params = {"a": 2**53 + 1, "b": 0.1, "c": "ä\n", "d": True, "e": None}
    assert await query(bench, text, params) == [
        {
            "a": 2**53 + 1,
            "b": 0.1,
            "c": "ä\n",
            "d": 1,
            "e": None,
            "bytes": "AP8=",
            "high": "Infinity",
        }
    ]


async def test_column_types_come_from_the_values(bench: Bench) -> None:
    text = "SELECT NULL AS a, NULL AS b, 1 AS c UNION ALL SELECT NULL, 1.5, 'x'"
    payload = {"connection": "main", "sql": text}
    result = await bench.run(sql_query, payload)
    assert [column["type"] for column in result["columns"]] == ["null", "real", "integer"]


@pytest.mark.parametrize("params", [[2**70], [[1]], {"a": {"b": 1}}])
async def test_params_that_sqlite_cannot_hold_fail_permanently(bench: Bench, params: Any) -> None:
    error = await failure(
        bench, "SELECT ? AS a" if isinstance(params, list) else "SELECT :a AS a", params
    )
    assert (error.type, error.retryable) == ("sql_error", False)


async def test_a_huge_value_is_refused_without_allocating_it(bench: Bench) -> None:
    error = await failure(bench, "SELECT zeroblob(1000000000) AS a")
    assert (error.type, error.retryable) == ("sql_error", False)


async def test_text_that_is_not_unicode_is_an_error(
    bench: Bench, database: sqlite3.Connection
) -> None:
    database.execute("INSERT INTO notes VALUES (CAST(x'ff' AS text))")
    error = await failure(bench, "SELECT a FROM notes")
    assert (error.type, error.retryable) == ("sql_error", False)


async def test_a_locked_database_is_retryable(bench: Bench, database: sqlite3.Connection) -> None:
    database.execute("BEGIN EXCLUSIVE")
    error = await failure(bench, "SELECT a FROM notes", connection="impatient")
    database.execute("ROLLBACK")
    assert (error.type, error.retryable) == ("sql_error", True)
    assert "locked" in error.message
    assert await query(bench, "SELECT a FROM notes", connection="impatient") == [{"a": 1}]


async def test_a_cancelled_job_interrupts_its_statement(bench: Bench) -> None:
    threads = connection_threads()
    process = psutil.Process()
    before = process.cpu_times().user
    task = asyncio.create_task(query(bench, ENDLESS))
    await eventually(lambda: process.cpu_times().user - before > 0.1)
    assert connection_threads() == threads + 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: connection_threads() <= threads)
    assert await query(bench, "SELECT a FROM notes") == [{"a": 1}]


async def test_a_job_cancelled_before_its_statement_began_leaves_no_thread(bench: Bench) -> None:
    threads = connection_threads()
    for turns in range(12):
        task = asyncio.create_task(query(bench, ENDLESS))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await eventually(lambda: connection_threads() <= threads)


@pytest.mark.usefixtures("database")
async def test_a_connection_that_closes_meanwhile_hides_no_error(tmp_path: Path) -> None:
    path = {"file_path": str(tmp_path / "notes.db")}
    connection = SqliteConnection("notes", path, writable=False)

    async def fails() -> None:
        async with connection.query("SELECT a FROM notes", timeout=10) as rows:
            opened = rows._client.open
            await opened._execute(opened._conn.close)  # type: ignore[no-untyped-call]  # aiosqlite's
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fails()
