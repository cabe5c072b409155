"""`sql.export` as a job; the files are read by other code than wrote them."""

import csv
import gzip
import io
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import asyncpg
import jsonschema_rs
import msgspec
import pytest

from tandem_worker.errors import TaskError
from tandem_worker.task import task_of
from tandem_worker.tasks.sql.execute import execute as sql_execute
from tandem_worker.tasks.sql.export import export as sql_export
from tandem_worker.tasks.sql.query import query as sql_query
from tests.worker.bench import Bench, open_bench
from tests.worker.tables import parquet

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NUMBERS = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :last)"
    " SELECT i, 'x' AS t FROM n"
)
ODD = ["", None, "a,b", 'say "hi"', "two\nlines", "\\.", " ", "ünï", "\r", "NULL", "plain", "''"]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        sqlite3.connect(tmp_path / "shop.db").close()
        return f"sqlite://{tmp_path}/shop.db"
    return str(request.getfixturevalue("postgres"))


@pytest.fixture
async def bench(url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, sql={"main": url, "shop": f"{url}?mode=rw"}) as opened:
        yield opened


async def export(
    bench: Bench, text: str, format: str = "csv", params: Any = None, **more: Any
) -> tuple[Any, bytes]:
    """The result, and the bytes of the published file."""
    payload = {"connection": "main", "sql": text, "params": params, "format": format, **more}
    result = await bench.run(sql_export, payload, stamp=7)
    jsonschema_rs.validator_for(task_of(sql_export).entry.result_schema).validate(result)
    data = await bench.resources.files.load(f"jobs/job/7/{result['file']['name']}", 1 << 30)
    assert result["file"]["size"] == len(data)
    return result, data


async def failure(
    bench: Bench, text: str, format: str = "csv", params: Any = None, **more: Any
) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await export(bench, text, format, params, **more)
    return caught.value


@pytest.mark.parametrize("compression", [None, "gzip", "zstd"])
@pytest.mark.parametrize("format", ["csv", "ndjson", "parquet"])
async def test_every_row_is_in_the_file(bench: Bench, format: str, compression: Any) -> None:
    result, data = await export(bench, NUMBERS, format, {"last": 30_000}, compression=compression)
    assert result["row_count"] == 30_000
    assert [column["name"] for column in result["columns"]] == ["i", "t"]
    if format == "parquet":
        assert [row["i"] for row in parquet.rows(data)] == list(range(1, 30_001))
        return
    if compression is not None:
        data = gzip.decompress(data) if compression == "gzip" else zstd.decompress(data)
    if format == "csv":
        read = list(csv.DictReader(io.StringIO(data.decode())))
        assert [int(row["i"]) for row in read] == list(range(1, 30_001))
    else:
        assert [msgspec.json.decode(line)["i"] for line in data.splitlines()] == list(
            range(1, 30_001)
        )


def _literal(value: str | None) -> str:
    return "NULL" if value is None else "'" + value.replace("'", "''") + "'"


async def test_odd_texts_export_alike_from_every_database(bench: Bench) -> None:
    text = " UNION ALL ".join(
        f"SELECT {number} AS n, {_literal(value)} AS t" for number, value in enumerate(ODD)
    )
    _, data = await export(bench, f"{text} ORDER BY n;  -- done")
    lines = data.decode().split("\n", 3)
    assert lines[:3] == ["n,t", '0,""', "1,"]
    read = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert [row[1] for row in read[1:]] == [one or "" for one in ODD]
    _, data = await export(bench, f"{text} ORDER BY n", "ndjson")
    assert [msgspec.json.decode(line)["t"] for line in data.splitlines()] == ODD
    _, data = await export(bench, f"{text} ORDER BY n", "parquet")
    assert [row["t"] for row in parquet.rows(data)] == ODD


@pytest.mark.parametrize("format", ["csv", "ndjson", "parquet"])
async def test_an_empty_result_makes_a_file(bench: Bench, format: str) -> None:
    result, data = await export(bench, "SELECT 1 AS a, 'x' AS b WHERE 1 = 0", format)
    assert result["row_count"] == 0
    if format == "parquet":
        assert (parquet.rows(data), list(parquet.types(data))) == ([], ["a", "b"])
    else:
        assert data == (b"a,b\n" if format == "csv" else b"")


@pytest.mark.parametrize("format", ["csv", "ndjson", "parquet"])
async def test_max_rows_and_max_bytes_limit_an_export(bench: Bench, format: str) -> None:
    assert (await export(bench, NUMBERS, format, {"last": 500}, max_rows=500))[0][
        "row_count"
    ] == 500
    for cap in ({"max_rows": 499}, {"max_bytes": 100}):
        error = await failure(bench, NUMBERS, format, {"last": 500}, **cap)
        assert (error.type, error.retryable) == ("too_large", False)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1 AS a; SELECT 2 AS a",
        "SELECT 1 AS a, 2 AS a",
        "SELECT 1) TO STDOUT; DROP TABLE kept; COPY (SELECT 1",
        "SELECT 1) TO PROGRAM 'cat' --",
        "DROP TABLE kept",
        "nonsense",
        "SELECT E'a'\n'\\', :p, $a$; COMMIT; DROP TABLE kept; --$a$",
    ],
)
async def test_anything_but_a_single_query_is_refused(bench: Bench, url: str, text: str) -> None:
    await bench.run(
        sql_execute,
        {"connection": "shop", "statements": [{"sql": "CREATE TABLE kept (a int)"}]},
        id="prepare",
    )
    params = {"p": "x"} if ":p" in text else None
    for connection in ("main", "shop"):
        error = await failure(bench, text, params=params, connection=connection)
        assert (error.type, error.retryable) == ("sql_error", False)
    assert (await export(bench, "SELECT * FROM kept"))[1] == b"a\n"


async def test_no_parameter_is_cut_to_the_length_that_its_type_has_by_default(
    bench: Bench, url: str
) -> None:
    if url.startswith("sqlite"):
        return
    # PostgreSQL calls it `character`, which means a length of one when it is read as SQL.
    text = "SELECT :c::bpchar AS c, pg_typeof(:c::bpchar) AS t, :b::varbit AS b"
    params = {"c": "hello", "b": "10110"}
    _, body = await export(bench, text, "csv", params)
    assert body == b"c,t,b\nhello,character,10110\n"


async def test_a_connection_is_usable_after_a_refusal(bench: Bench) -> None:
    await failure(bench, NUMBERS, "csv", {"last": 300_000}, max_bytes=1000)
    await failure(
        bench, "SELECT 1 / 0 AS a WHERE 1 = :one", "ndjson", {"one": "x" * 9000, "two": 2}
    )
    assert (await export(bench, NUMBERS, "csv", {"last": 3}))[1] == b"i,t\n1,x\n2,x\n3,x\n"


async def test_values_of_postgresql(bench: Bench, url: str) -> None:
    if url.startswith("sqlite"):
        return
    text = """SELECT :d::date AS day, :t::timestamptz AS at, :n::numeric AS n, :b::bytea AS b,
        :j::jsonb AS j, :l::int[] AS l, :nothing::text AS nothing, 0.1::float8 AS f, true AS yes,
        '$1' AS no_param, 'it''s' AS q"""
    params = {
        "d": "2026-02-03",
        "t": "2026-02-03T04:05:06.789+01:00",
        "n": 3,
        "b": "AP8=",
        "j": {"a": ["'"]},
        "l": [1, 2],
        "nothing": None,
    }
    result, data = await export(bench, text, "parquet", params)
    assert result["columns"][1] == {"name": "at", "type": "timestamptz"}
    at = datetime(2026, 2, 3, 3, 5, 6, 789000, UTC)
    row = {
        "day": date(2026, 2, 3),
        "at": at,
        "n": "3",
        "b": b"\0\xff",
        "j": '{"a": ["\'"]}',
        "l": "[1,2]",
    }
    row |= {"nothing": None, "f": 0.1, "yes": True, "no_param": "$1", "q": "it's"}
    assert parquet.rows(data) == [row]
    _, data = await export(bench, text, "csv", params)
    server = await asyncpg.connect(url)
    out = io.BytesIO()
    plain = """SELECT '2026-02-03'::date AS day, '2026-02-03T03:05:06.789Z'::timestamptz AS at,
        3 AS n, '\\x00ff'::bytea AS b, '{"a": ["''"]}'::jsonb AS j, '{1,2}'::int[] AS l,
        NULL AS nothing, 0.1::float8 AS f,
        true AS yes, '$1' AS no_param, 'it''s' AS q"""
    await server.copy_from_query(plain, output=out, format="csv", header=True)
    await server.close()
    assert data == out.getvalue()


async def test_values_of_sqlite(bench: Bench, url: str) -> None:
    if not url.startswith("sqlite"):
        return
    text = (
        "SELECT 1 AS i, 0.5 AS r, x'00ff' AS b, 9e999 AS high, NULL AS n"
        " UNION ALL SELECT 2, NULL, NULL, 1, 'x'"
    )
    _, data = await export(bench, text)
    assert data == b"i,r,b,high,n\n1,0.5,AP8=,Infinity,\n2,,,1,x\n"
    _, data = await export(bench, text, "parquet")
    assert [row["b"] for row in parquet.rows(data)] == [b"\0\xff", None]
    error = await failure(bench, "SELECT 1 AS a UNION ALL SELECT 'x'", "parquet")
    assert (error.type, "'a'" in error.message) == ("sql_error", True)


async def test_a_writable_connection_can_be_exported(bench: Bench, url: str) -> None:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite://"))) as database:
            database.execute("CREATE TABLE a (b)")
    _, data = await export(bench, "SELECT 1 AS a", connection="shop")
    assert data == b"a\n1\n"


async def test_max_bytes_limits_a_query(bench: Bench) -> None:
    payload = {"connection": "main", "sql": NUMBERS, "params": {"last": 100}, "max_bytes": 1000}
    with pytest.raises(TaskError) as caught:
        await bench.run(sql_query, payload)
    assert (caught.value.type, caught.value.retryable) == ("too_large", False)
    assert (await bench.run(sql_query, {**payload, "max_bytes": 5000}))["row_count"] == 100
