"""`sql.import` as a job; the rows are read by the database's own client."""

import gzip
import io
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tandem_worker.errors import TaskError
from tandem_worker.task import task_of
from tandem_worker.tasks.sql.export import export as sql_export
from tandem_worker.tasks.sql.imports import SqlImport
from tandem_worker.tasks.sql.imports import import_ as sql_import
from tests.worker.bench import Bench, open_bench
from tests.worker.connectors.sql.databases import Database

SCHEMA = jsonschema_rs.validator_for(task_of(sql_import).entry.payload_schema)
ROWS = [("cup", 1, 4.5), ("pot", 2, None), ("", None, 0.25)]
CSV = b'item,amount,price\r\ncup,1,4.5\r\npot,2,\r\n"",,0.25\r\n'
NDJSON = (
    b'{"item":"cup","amount":1,"price":4.5}\n{"price":null,"item":"pot","amount":2}\n'
    b'\n{"item":"","price":0.25}\n'
)


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(
        pa.table(
            {name: [row[n] for row in ROWS] for n, name in enumerate(("item", "amount", "price"))}
        ),
        file,
    )
    return file.getvalue()


@pytest.fixture
async def bench(database: Database, tmp_path: Path) -> AsyncIterator[Bench]:
    await database.rows(
        "CREATE TABLE stock (item text PRIMARY KEY, amount integer, price real CHECK (price < 100))"
    )
    urls = {"main": database.url, "shop": f"{database.url}?mode=rw"}
    async with open_bench(tmp_path, sql=urls) as opened:
        yield opened


async def imported(bench: Bench, data: bytes, name: str = "stock.csv", **more: Any) -> Any:
    source = {"file": await bench.upload(name, data, "application/octet-stream")}
    job = {key: more.pop(key) for key in ("id", "stamp") if key in more}
    payload = {"connection": "shop", "table": "stock", "source": source, **more}
    result = await bench.run(sql_import, payload, **job)
    jsonschema_rs.validator_for(task_of(sql_import).entry.result_schema).validate(result)
    return result


async def failure(bench: Bench, data: bytes, name: str = "stock.csv", **more: Any) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await imported(bench, data, name, **more)
    return caught.value


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", CSV),
        ("a.csv", b"\xef\xbb\xbf" + CSV.replace(b"\r\n", b"\n").rstrip()),
        ("a.csv.gz", gzip.compress(CSV, mtime=0)),
        ("a.ndjson", NDJSON),
        ("a.jsonl.gz", gzip.compress(NDJSON, mtime=0)),
        ("a.parquet", parquet()),
    ],
)
async def test_every_format_gives_the_same_rows(
    bench: Bench, database: Database, name: str, data: bytes
) -> None:
    assert await imported(bench, data, name) == {"row_count": 3, "bad_count": 0}
    assert sorted(await database.rows("SELECT item, amount, price FROM stock")) == sorted(ROWS)


async def test_exports_can_be_imported(bench: Bench, database: Database) -> None:
    odd = [
        "",
        None,
        "a,b",
        'say "hi"',
        "two\nlines",
        "\\N",
        "\\.",
        " ",
        "ünï",
        "\ttab\r\n",
        "NULL",
        '""',
        '",""',
    ]
    number = "integer" if database.sqlite else "bigint"
    await database.rows(
        f"CREATE TABLE texts (n {number}, t text, b {'blob' if database.sqlite else 'bytea'})"
    )
    await database.rows("CREATE TABLE copies AS SELECT * FROM texts")
    await database.rows("DROP TABLE copies")
    await database.rows(
        f"CREATE TABLE copies (n {number}, t text, b {'blob' if database.sqlite else 'bytea'})"
    )
    data = b"".join(
        msgspec.json.encode({"n": n, "t": t, "b": "AP8="}) + b"\n" for n, t in enumerate(odd)
    )
    await imported(bench, data, "texts.ndjson", table="texts")
    written = [(n, t, b"\0\xff") for n, t in enumerate(odd)]
    assert await database.rows("SELECT * FROM texts ORDER BY n") == written
    for turn, format in enumerate(("csv", "ndjson", "parquet")):
        payload = {
            "connection": "main",
            "sql": "SELECT * FROM texts",
            "format": format,
            "compression": "zstd",
        }
        result = await bench.run(sql_export, payload, id=f"export{turn}", stamp=1)
        path = f"jobs/export{turn}/1/{result['file']['name']}"
        content = await bench.resources.files.load(path, 1 << 20)
        await imported(
            bench, content, result["file"]["name"], table="copies", id=f"import{turn}", batch=2
        )
        assert await database.rows("SELECT * FROM copies ORDER BY n") == written
        await database.rows("DELETE FROM copies")


@pytest.mark.parametrize("text", ["\t", "\\", "\n", "\r", "a\tb\\\n"])
async def test_a_single_text_among_nulls_is_escaped_for_copy(
    bench: Bench, database: Database, text: str
) -> None:
    await database.rows("CREATE TABLE texts (n integer, t text)")
    texts = [None, text, None, "plain"]
    data = b"".join(msgspec.json.encode({"n": n, "t": t}) + b"\n" for n, t in enumerate(texts))
    await imported(bench, data, "texts.ndjson", table="texts")
    assert await database.rows("SELECT t FROM texts ORDER BY n") == [(one,) for one in texts]


async def test_many_rows_are_imported_in_batches(bench: Bench, database: Database) -> None:
    data = b"amount,item\n" + b"".join(b"%d,item %d\n" % (n, n) for n in range(20_000))
    assert await imported(bench, data, batch=999) == {"row_count": 20_000, "bad_count": 0}
    assert await database.rows("SELECT count(*), sum(amount) FROM stock") == [
        (20_000, sum(range(20_000)))
    ]
    assert bench.recorder.progressed[-1]["current"] == 20_000


async def test_an_upsert_keeps_the_last_row_of_a_key(bench: Bench, database: Database) -> None:
    await database.rows("INSERT INTO stock VALUES ('cup', 9, 9.5), ('mug', 7, 7.5)")
    data = b"item,amount\npot,1\ncup,2\npot,3\nmug,4\nmug,5\n"
    result = await imported(bench, data, mode="upsert", key=["item"], batch=3)
    assert result == {"row_count": 5, "bad_count": 0}
    rows = await database.rows("SELECT * FROM stock ORDER BY item")
    assert rows == [("cup", 2, 9.5), ("mug", 5, 7.5), ("pot", 3, None)]
    keys = await imported(bench, b"item\ncup\nbox\n", mode="upsert", key=["item"], id="two")
    assert keys["row_count"] == 2
    assert await database.rows("SELECT count(*), sum(amount) FROM stock") == [(4, 10)]


async def test_columns_can_be_chosen(bench: Bench, database: Database) -> None:
    data = b"item,comment,amount\ncup,x,1\n"
    assert (await failure(bench, data)).type == "sql_error"
    assert (await imported(bench, data, columns=["amount", "item"]))["row_count"] == 1
    assert await database.rows("SELECT * FROM stock") == [("cup", 1, None)]
    assert (await failure(bench, data, columns=["price"], id="two")).type == "invalid_file"


@pytest.mark.parametrize("batch", [1, 3, 5000])
async def test_bad_rows_are_left_out_and_listed(
    bench: Bench, database: Database, batch: int
) -> None:
    data = (
        b'item,amount,price\ncup,1,1\ncup,2,1\npot,3,200\n"two\nlines",4,1\nshort\nbox,5,1\n'
        b'"open,1,1\nlast,7,7\n'
    )
    result = await imported(bench, data, max_bad=4, batch=batch, stamp=3)
    assert (result["row_count"], result["bad_count"]) == (3, 4)
    assert sorted(await database.rows("SELECT item FROM stock")) == [
        ("box",),
        ("cup",),
        ("two\nlines",),
    ]
    listed = await bench.resources.files.load("jobs/job/3/bad-rows.ndjson", 1 << 20)
    bad = [msgspec.json.decode(line) for line in listed.splitlines()]
    assert sorted(row["line"] for row in bad) == [3, 4, 7, 9]
    assert all(row["reason"] for row in bad)
    assert {"item": "pot", "amount": "3", "price": "200"} in [row["row"] for row in bad]


async def test_more_than_max_bad_rows_import_nothing(bench: Bench, database: Database) -> None:
    data = b"item,amount,price\n" + b"".join(
        b"item %d,1,%d\n" % (n, 200 if n in (7, 70) else 1) for n in range(100)
    )
    error = await failure(bench, data, max_bad=1)
    assert (error.type, error.retryable) == ("bad_rows", False)
    assert "line 72" in error.message
    assert "line 9" in (await failure(bench, data)).message
    assert await database.rows("SELECT count(*) FROM stock") == [(0,)]
    assert (await imported(bench, data, max_bad=2))["bad_count"] == 2


async def test_a_repeated_attempt_imports_nothing_and_has_the_same_result(
    bench: Bench, database: Database
) -> None:
    data = b"item\ncup\ncup\n"
    first = await imported(bench, data, max_bad=1, stamp=1)
    second = await imported(bench, data, max_bad=1, stamp=2)
    assert (first["row_count"], first["bad_count"]) == (1, 1)
    assert first == second
    listed = [
        await bench.resources.files.load(f"jobs/job/{n}/bad-rows.ndjson", 1 << 20) for n in (1, 2)
    ]
    assert listed[0] == listed[1]
    assert await database.rows("SELECT count(*) FROM stock") == [(1,)]


@pytest.mark.parametrize(
    ("data", "name", "type"),
    [
        (b"item\n\xff\xfe\n", "a.csv", "invalid_file"),
        (b"item,item\na,b\n", "a.csv", "invalid_file"),
        (b"nonsense\n", "a.ndjson", "invalid_file"),
        (b"PAR1 but no more", "a.parquet", "invalid_file"),
        (gzip.compress(CSV, mtime=0)[:-20], "a.csv.gz", "invalid_file"),
        (CSV, "a.bin", "unknown_format"),
        (b"other\na\n", "a.csv", "sql_error"),
    ],
)
async def test_files_that_cannot_be_imported(
    bench: Bench, database: Database, data: bytes, name: str, type: str
) -> None:
    error = await failure(bench, data, name)
    assert (error.type, error.retryable) == (type, False)
    assert await database.rows("SELECT count(*) FROM stock") == [(0,)]


async def test_an_empty_file_has_no_rows(bench: Bench, database: Database) -> None:
    assert (await imported(bench, b"item,amount\n"))["row_count"] == 0
    assert (await imported(bench, b"", "a.ndjson", id="two"))["row_count"] == 0


@pytest.mark.parametrize(
    ("table", "connection", "type"),
    [
        ("nowhere", "shop", "sql_error"),
        ("stock", "main", "read_only"),
        ("stock; DROP TABLE stock", "shop", "sql_error"),
    ],
)
async def test_missing_and_unwritable_tables_are_refused(
    bench: Bench, database: Database, table: str, connection: str, type: str
) -> None:
    error = await failure(bench, CSV, table=table, connection=connection)
    assert (error.type, error.retryable) == (type, False)
    assert await database.rows("SELECT count(*) FROM stock") == [(0,)]


async def test_an_upsert_needs_a_unique_index(bench: Bench) -> None:
    error = await failure(bench, CSV, mode="upsert", key=["amount"])
    assert (error.type, error.retryable) == ("sql_error", False)


async def test_values_of_postgresql(bench: Bench, database: Database) -> None:
    if database.sqlite:
        return
    await database.rows('CREATE SCHEMA "My Schema"')
    columns = "at timestamptz, j jsonb, l text[], n numeric, yes boolean"
    await database.rows(f'CREATE TABLE "My Schema"."T" ({columns}, other text DEFAULT \'x\')')
    rows = [
        {
            "at": "2026-02-03T04:05:06Z",
            "j": {"a": ['"']},
            "l": ['a"b', "c,d", None],
            "n": "1.10",
            "yes": True,
        },
        {"at": None, "j": "text", "l": [], "n": 2, "yes": False},
        {"at": "no time", "j": None, "l": None, "n": None, "yes": None},
        {"at": None, "j": None, "l": None, "n": "1e", "yes": None},
    ]
    data = b"\n".join(msgspec.json.encode(row) for row in rows)
    result = await imported(bench, data, "a.ndjson", table="My Schema.T", max_bad=2)
    assert (result["row_count"], result["bad_count"]) == (2, 2)
    found = await database.rows(
        'SELECT at, j::text, l, n::text, yes, other FROM "My Schema"."T" ORDER BY n'
    )
    at = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert found[0] == (at, '{"a": ["\\""]}', ['a"b', "c,d", None], "1.10", True, "x")
    assert found[1] == (None, '"text"', [], "2", False, "x")


@pytest.mark.parametrize(
    "more",
    [
        {"mode": "upsert"},
        {"key": ["item"]},
        {"mode": "upsert", "key": []},
        {"mode": "replace"},
        {"batch": 0},
        {"max_bad": -1},
        {"format": "xml"},
        {"table": 'a"b'},
        {"table": "a.b.c"},
        {"columns": []},
        {"delimiter": ";"},
    ],
)
def test_invalid_payloads_are_refused_by_model_and_schema(more: Any) -> None:
    payload = {"connection": "shop", "table": "stock", "source": {"file": "x"}}
    SqlImport.model_validate(payload)
    assert SCHEMA.is_valid(payload)
    assert SCHEMA.is_valid({**payload, "mode": "upsert", "key": ["item"]})
    assert not SCHEMA.is_valid({**payload, **more})
    with pytest.raises(ValidationError):
        SqlImport.model_validate({**payload, **more})
