"""SQLite's values through export and import, as duckdb reads Parquet and sqlite3 the tables."""

from pathlib import Path
from typing import Any

import duckdb
import pytest

from tandem_worker.errors import TaskError
from tandem_worker.tasks.sql.export import export as sql_export
from tandem_worker.tasks.sql.imports import import_ as sql_import
from tests.worker.bench import open_bench
from tests.worker.connectors.sql.databases import Database


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite://{tmp_path}/shop.db")


async def exported(directory: Path, database: Database, sql: str) -> list[Any]:
    async with open_bench(directory, sql={"lite": database.url}) as bench:
        payload = {"connection": "lite", "sql": sql, "format": "parquet"}
        await bench.run(sql_export, payload, stamp=7)
        data = await bench.resources.files.load("jobs/job/7/export.parquet", 1 << 30)
    file = directory / "export.parquet"
    file.write_bytes(data)
    found = duckdb.sql(f"SELECT * FROM read_parquet('{file}')")
    assert found is not None
    return found.fetchall()


async def test_a_fraction_behind_an_integer_is_not_cut(tmp_path: Path, database: Database) -> None:
    await database.rows("CREATE TABLE prices (item text, price decimal(10,2))")
    await database.rows("INSERT INTO prices VALUES ('a', 5.00), ('b', 9.99), ('c', 19.50)")
    rows = await exported(tmp_path, database, "SELECT * FROM prices ORDER BY item")
    assert rows == [("a", 5.0), ("b", 9.99), ("c", 19.5)]


@pytest.mark.parametrize("late", ["2.5", "'two'", "x'00'"])
async def test_a_late_value_of_another_type_is_refused(
    tmp_path: Path, database: Database, late: str
) -> None:
    await database.rows("CREATE TABLE made (the_file int)")
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000)"
    sql = f"{numbers} SELECT CASE WHEN i = 8999 THEN {late} ELSE i END AS odd FROM n"
    with pytest.raises(TaskError) as caught:
        await exported(tmp_path, database, sql)
    assert (caught.value.type, caught.value.retryable) == ("sql_error", False)
    assert "'odd'" in caught.value.message


# Declared type → what it keeps through every format; see "SQLite" in docs/data.md for the rest.
KEPT = {
    "INTEGER": ["NULL", "0", "9223372036854775807", "-9223372036854775808", "9007199254740993"],
    "REAL": ["NULL", "0.1", "-0.0", "1e999", "-1e999", "5e-324", "1e20", "2.0"],
    "DECIMAL(10,2)": ["9.99", "1e999", "1.5"],
    "TEXT": ["NULL", "''", "' '", "'NULL'", "'1.0'", "'Infinity'", "'a' || char(0)", "char(13)"],
    "VARCHAR(5)": ["'007'", "'q\"uo''te'", "'a' || char(10) || 'b'", "'\u00e4\U0001f389'"],
    "DATE": ["'2026-01-02'", "NULL"],
    "BLOB": ["NULL", "x''", "x'00ff'", "x'5c78'"],
}


@pytest.mark.parametrize("format", ["csv", "ndjson", "parquet"])
@pytest.mark.parametrize("declared", KEPT)
async def test_export_and_import_are_the_identity(
    tmp_path: Path, database: Database, declared: str, format: str
) -> None:
    values = ", ".join(f"({value})" for value in KEPT[declared])
    for table in ("here", "there"):
        await database.rows(f"CREATE TABLE {table} (v {declared})")
    await database.rows(f"INSERT INTO here VALUES {values}")
    async with open_bench(tmp_path, sql={"lite": f"{database.url}?mode=rw"}) as bench:
        payload = {"connection": "lite", "sql": "SELECT v FROM here", "format": format}
        await bench.run(sql_export, payload, stamp=7)
        data = await bench.resources.files.load(f"jobs/job/7/export.{format}", 1 << 20)
        source = {"file": await bench.upload(f"export.{format}", data, "text/plain")}
        target = {"connection": "lite", "table": "there", "source": source}
        await bench.run(sql_import, target, id="import")
    shown = "SELECT typeof(v), quote(v), hex(v) FROM {} ORDER BY rowid"
    here, there = [await database.rows(shown.format(table)) for table in ("here", "there")]
    assert there == here
