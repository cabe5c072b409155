"""SQLite's values through Parquet, as duckdb reads them."""

from pathlib import Path
from typing import Any

import duckdb
import pytest

from tandem_worker.errors import TaskError
from tandem_worker.tasks.sql.export import export as sql_export
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
