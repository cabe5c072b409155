"""`sql.query` as a job: what SQLite and PostgreSQL have in common."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import jsonschema_rs
import psutil
import pytest
from pydantic import ValidationError

from tandem_shared.errors import Misconfigured
from tandem_shared.settings import load_settings
from tandem_worker.connectors.sql.connections import open_sql
from tandem_worker.errors import TaskError
from tandem_worker.task import task_of
from tandem_worker.tasks.sql.query import query as sql_query
from tests.conftest import eventually
from tests.worker.bench import Bench, open_bench

TASK = task_of(sql_query)
SCHEMA = jsonschema_rs.validator_for(TASK.entry.payload_schema)
CITIES = [("Oslo", 709037), ("Bergen", 291940), ("Tromsø", 77992)]
TABLE = "CREATE TABLE cities (name text PRIMARY KEY, people integer NOT NULL)"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/cities.db"
    return str(request.getfixturevalue("postgres"))


@pytest.fixture
async def bench(url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    """Three cities in the connection `cities`, and `writable` for the same with mode=rw."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite://"))) as database, database:
            database.execute(TABLE)
            database.executemany("INSERT INTO cities VALUES (?, ?)", CITIES)
    else:
        server = await asyncpg.connect(url)
        await server.execute(TABLE)
        await server.executemany("INSERT INTO cities VALUES ($1, $2)", CITIES)
        await server.close()
    async with open_bench(tmp_path, sql={"cities": url, "writable": f"{url}?mode=rw"}) as opened:
        yield opened


async def query(
    bench: Bench, text: str, params: Any = None, connection: str = "cities", **more: Any
) -> Any:
    return await bench.run(
        sql_query, {"connection": connection, "sql": text, "params": params, **more}
    )


async def failure(
    bench: Bench, text: str, params: Any = None, connection: str = "cities", **more: Any
) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await query(bench, text, params, connection, **more)
    return caught.value


async def test_rows_stream_as_objects(bench: Bench) -> None:
    result = await query(bench, "SELECT name, people FROM cities ORDER BY people DESC")
    kind = "integer" if result["columns"][1]["type"] == "integer" else "int4"
    assert result == {
        "row_count": 3,
        "columns": [{"name": "name", "type": "text"}, {"name": "people", "type": kind}],
    }
    assert bench.recorder.items == [{"name": name, "people": people} for name, people in CITIES]
    assert bench.recorder.progressed[-1] == {"current": 3, "total": 3, "message": None}
    jsonschema_rs.validator_for(TASK.entry.result_schema).validate(result)


async def test_rows_can_be_the_result(bench: Bench) -> None:
    result = await query(
        bench,
        "SELECT name FROM cities WHERE people < :limit",
        {"limit": 300000},
        **{"as": "result"},
    )
    assert result["row_count"] == 2
    assert sorted(row["name"] for row in result["rows"]) == ["Bergen", "Tromsø"]
    assert bench.recorder.items == []
    jsonschema_rs.validator_for(TASK.entry.result_schema).validate(result)


async def test_the_connection_is_found_in_any_case(bench: Bench) -> None:
    assert (await query(bench, "SELECT 1 AS one", connection="CITIES"))["row_count"] == 1


async def test_an_unknown_connection_is_named(bench: Bench) -> None:
    error = await failure(bench, "SELECT 1", connection="nowhere")
    assert (error.type, error.retryable) == ("unknown_connection", False)
    assert "'nowhere'" in error.message


async def test_an_empty_result_is_valid(bench: Bench) -> None:
    result = await query(bench, "SELECT name FROM cities WHERE people < 0")
    assert (result["row_count"], bench.recorder.items) == (0, [])


NUMBERS = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :last)"
    " SELECT i FROM n"
)


@pytest.mark.parametrize(
    ("last", "limit", "fits"), [(10, 10, True), (11, 10, False), (1, 1, True), (5000, 77, False)]
)
async def test_more_than_max_rows_fail_the_job(
    bench: Bench, last: int, limit: int, fits: bool
) -> None:
    if fits:
        assert (await query(bench, NUMBERS, {"last": last}, max_rows=limit))["row_count"] == last
        return
    error = await failure(bench, NUMBERS, {"last": last}, max_rows=limit)
    assert (error.type, error.retryable) == ("too_large", False)
    assert len(bench.recorder.items) == limit


async def test_a_result_holds_up_to_a_thousand_rows(bench: Bench) -> None:
    result = await query(bench, NUMBERS, {"last": 1000}, **{"as": "result"})
    assert [row["i"] for row in result["rows"]] == list(range(1, 1001))
    error = await failure(bench, NUMBERS, {"last": 1001}, **{"as": "result"})
    assert (error.type, error.retryable) == ("too_large", False)
    error = await failure(bench, NUMBERS, {"last": 1000}, **{"as": "result"}, max_rows=999)
    assert error.type == "too_large"


async def test_many_rows_arrive_once_and_in_order(bench: Bench) -> None:
    result = await query(bench, NUMBERS, {"last": 12_345})
    assert result["row_count"] == 12_345
    assert [row["i"] for row in bench.recorder.items] == list(range(1, 12_346))
    assert [report["current"] for report in bench.recorder.progressed] == [5000, 10000, 12_345]


async def test_memory_stays_constant(bench: Bench) -> None:
    class Counting:
        count = 0
        peak = 0

        async def progress(self, body: bytes) -> None:
            self.peak = max(self.peak, psutil.Process().memory_info().rss)

        async def output(self, item: bytes) -> None:
            self.count += 1

        def log(self, body: bytes) -> None: ...

    await query(bench, NUMBERS, {"last": 10})
    sink = Counting()
    bench.recorder = sink  # type: ignore[assignment] # a sink that does not keep items
    before = psutil.Process().memory_info().rss
    wide = NUMBERS.replace("SELECT i FROM", f"SELECT i, '{'x' * 1000}' AS text FROM")
    await query(bench, wide, {"last": 100_000})
    assert sink.count == 100_000
    assert sink.peak - before < 50 << 20  # the rows have 100 MB


SEVERAL = [
    "SELECT 1; SELECT 2",
    "COMMIT; DROP TABLE cities",
    "SELECT 1; DELETE FROM cities; --",
    "; SELECT 1",
]


@pytest.mark.parametrize("text", SEVERAL)
@pytest.mark.parametrize("connection", ["cities", "writable"])
async def test_several_statements_are_refused(bench: Bench, text: str, connection: str) -> None:
    error = await failure(bench, text, connection=connection)
    assert (error.type, error.retryable) == ("sql_error", False)
    assert "one statement" in error.message


WRITES = [
    "INSERT INTO cities VALUES ('Bodø', 1) RETURNING name",
    "INSERT INTO cities VALUES ('Bodø', 1)",
    "UPDATE cities SET people = 0 RETURNING name",
    "DELETE FROM cities RETURNING name",
    "DELETE FROM cities",
    "DROP TABLE cities",
    "CREATE TABLE other (a integer)",
    "CREATE TEMP TABLE other (a integer)",
    "ALTER TABLE cities ADD COLUMN a integer",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT a",
    "VACUUM",
    "ANALYZE",
    "REINDEX TABLE cities",
]


@pytest.mark.parametrize("text", WRITES)
async def test_a_read_only_connection_writes_nothing(bench: Bench, text: str) -> None:
    error = await failure(bench, text)
    assert (error.type, error.retryable) == ("sql_error", False)
    assert (await query(bench, "SELECT sum(people) AS people FROM cities", **{"as": "result"}))[
        "rows"
    ] == [{"people": sum(people for _, people in CITIES)}]


async def test_a_writable_connection_commits_only_what_succeeds(bench: Bench) -> None:
    insert = "INSERT INTO cities VALUES (:name, 1), (:other, 1) RETURNING name"
    failed = await failure(
        bench, insert, {"name": "Bodø", "other": "Hamar"}, "writable", max_rows=1
    )
    assert failed.type == "too_large"
    assert (await query(bench, "SELECT name FROM cities"))["row_count"] == 3
    done = await query(bench, insert, {"name": "Bodø", "other": "Hamar"}, "writable")
    assert done["row_count"] == 2
    assert (await query(bench, "SELECT name FROM cities"))["row_count"] == 5


async def test_a_statement_without_rows_is_refused_and_not_applied(bench: Bench) -> None:
    error = await failure(bench, "DELETE FROM cities", connection="writable")
    assert (error.type, "returns no rows" in error.message) == ("sql_error", True)
    assert (await query(bench, "SELECT name FROM cities"))["row_count"] == 3


@pytest.mark.parametrize(
    ("text", "params"),
    [
        ("SELEC 1", None),
        ("SELECT * FROM nowhere", None),
        ("SELECT nothing FROM cities", None),
        ("SELECT :a", {}),
        ("SELECT 1", {"a": 1}),
        ("SELECT 1 AS a, 2 AS a", None),
        ("SELECT name FROM cities WHERE people = :a", {"a": {"b": 1}}),
        ("", None),
    ],
)
async def test_invalid_statements_fail_permanently_and_quote_no_value(
    bench: Bench, text: str, params: Any
) -> None:
    error = await failure(bench, text or "-- nothing", params)
    assert (error.type, error.retryable) == ("sql_error", False)
    assert "\n" not in error.message
    assert "postgres:" not in error.message


@pytest.mark.parametrize("params", [[], None, [1, 2]])
async def test_the_number_of_values_must_match(bench: Bench, url: str, params: Any) -> None:
    placeholder = "?" if url.startswith("sqlite") else "$1"
    assert (await query(bench, f"SELECT name FROM cities WHERE people > {placeholder}", [100_000]))[
        "row_count"
    ] == 2
    error = await failure(bench, f"SELECT name FROM cities WHERE people > {placeholder}", params)
    assert (error.type, error.retryable) == ("sql_error", False)


async def test_quotes_in_values_are_not_sql(bench: Bench) -> None:
    value = "'; DROP TABLE cities; --"
    result = await query(bench, "SELECT name FROM cities WHERE name <> :name", {"name": value})
    assert result["row_count"] == 3


async def test_simultaneous_jobs_share_the_connection(bench: Bench) -> None:
    results = await asyncio.gather(*(query(bench, NUMBERS, {"last": 300}) for _ in range(30)))
    assert [result["row_count"] for result in results] == [300] * 30


async def test_a_cancelled_job_leaves_a_usable_connection(bench: Bench) -> None:
    running = [
        asyncio.create_task(query(bench, NUMBERS, {"last": 2_000_000_000})) for _ in range(12)
    ]
    await eventually(lambda: bench.recorder.items)
    for task in running:
        task.cancel()
    ended = await asyncio.gather(*running, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in ended)
    assert (await query(bench, NUMBERS, {"last": 3}))["row_count"] == 3


@pytest.mark.parametrize(
    "payload",
    [
        {"connection": "a"},
        {"sql": "SELECT 1"},
        {"connection": "", "sql": "SELECT 1"},
        {"connection": "a", "sql": ""},
        {"connection": "a", "sql": " \n"},
        {"connection": "a", "sql": "SELECT \u0000"},
        {"connection": "a", "sql": "SELECT 1", "query": "named"},
        {"connection": "a", "sql": "SELECT 1", "params": "x"},
        {"connection": "a", "sql": "SELECT 1", "max_rows": 0},
        {"connection": "a", "sql": "SELECT 1", "as": "file"},
        {"connection": "a", "sql": "SELECT 1", "as_": "result"},
    ],
)
def test_the_schema_and_the_worker_refuse_the_same(payload: dict[str, Any]) -> None:
    assert not SCHEMA.is_valid(payload)
    with pytest.raises(ValidationError):
        TASK.signature.payload.validate_python(payload)


def test_a_querys_timeout_is_ten_minutes() -> None:
    assert TASK.entry.defaults["timeout"] == 600


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:hunter2@host/db",
        "postgres://user:hunter2@host:port/db",
        "postgres://user:hunter2@host/db?mode=rwx",
        "postgres://user:hunter2@host/db?sslmode=maybe",
        "hunter2",
        "sqlite://",
    ],
)
async def test_an_invalid_url_stops_the_start_without_revealing_secrets(url: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        async with open_sql(load_settings(sql={"broken": url})):
            pass
    assert "TANDEM_SQL__BROKEN" in str(caught.value)
    assert "hunter2" not in str(caught.value)
