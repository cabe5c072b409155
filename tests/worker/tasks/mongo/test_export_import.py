"""`mongo.export` and `mongo.import`, with files that other programs read and write."""

import csv
import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bson
import duckdb
import pytest

from tandem_shared.jobs.ids import new_id
from tandem_worker.archives.compression import zstd
from tandem_worker.connectors.mongo.extended_json import derived_id
from tandem_worker.tasks.mongo.export import export as mongo_export
from tandem_worker.tasks.mongo.imports import import_file as mongo_import_file
from tandem_worker.tasks.mongo.imports import read_documents
from tests.worker.bench import Bench
from tests.worker.tables import parquet
from tests.worker.tasks.mongo.test_tasks import OID, ORDERS, Database, ask, failure, fill
from tests.worker.tasks.mongo.test_tasks import bench as bench  # noqa: PLC0414 - pytest finds fixtures by name
from tests.worker.tasks.mongo.test_tasks import database as database  # noqa: PLC0414 - pytest finds fixtures by name
from tests.worker.tasks.mongo.test_tasks import url as url  # noqa: PLC0414 - pytest finds fixtures by name


async def exported(bench: Bench, format: str, **more: Any) -> tuple[Any, bytes]:
    """The result, and the bytes of the published file."""
    result = await ask(bench, mongo_export, {"format": format, **more}, id="exporting", stamp=1)
    data = await bench.resources.files.load(f"jobs/exporting/1/{result['file']['name']}", 1 << 30)
    assert result["file"]["size"] == len(data)
    return result, data


@pytest.mark.parametrize("format", ["ndjson", "json"])
async def test_an_export_can_be_imported_unchanged(
    bench: Bench, database: Database, format: str
) -> None:
    await fill(bench)
    exported = await ask(
        bench, mongo_export, {"format": format, "sort": {"amount": 1}}, id="exporting", stamp=1
    )
    assert exported["count"] == 3
    data = await bench.resources.files.load(f"jobs/exporting/1/orders.{format}", 1 << 20)
    lines = (
        json.loads(data) if format == "json" else [json.loads(line) for line in data.splitlines()]
    )
    assert lines == [ORDERS[1], ORDERS[0], ORDERS[2]]
    before = list(database.orders.find(sort=[("amount", 1)]))
    database.orders.delete_many({})
    source = await bench.upload(f"orders.{format}", data, "")
    id = new_id()
    for _ in range(2):
        assert await ask(bench, mongo_import_file, {"source": {"file": source}}, id=id) == {
            "inserted": 3,
            "bad_count": 0,
        }
    assert list(database.orders.find(sort=[("amount", 1)])) == before


async def test_csv_is_exported_and_imported(bench: Bench, database: Database) -> None:
    rows = [{"_id": f"{n}", "name": f'a "quoted"\nname, {n}', "n": n} for n in range(3)]
    database.orders.insert_many(rows)
    asked = {"format": "csv", "projection": {"name": 1, "n": 1}, "sort": {"n": 1}}
    assert (await ask(bench, mongo_export, asked, id="exporting", stamp=1))["count"] == 3
    data = await bench.resources.files.load("jobs/exporting/1/orders.csv", 1 << 20)
    text = [{**row, "n": str(row["n"])} for row in rows]
    assert list(csv.DictReader(data.decode().splitlines(keepends=True))) == text
    database.orders.delete_many({})
    source = await bench.upload("orders.csv", data, "text/csv")
    assert await ask(bench, mongo_import_file, {"source": {"file": source}}) == {
        "inserted": 3,
        "bad_count": 0,
    }
    assert sorted(database.orders.find(), key=lambda one: str(one["_id"])) == text


async def test_a_table_has_the_fields_of_all_documents(bench: Bench, database: Database) -> None:
    database.orders.insert_many([{"_id": 1, "a": 1}, {"_id": 2, "b": ""}])
    _, data = await exported(bench, "csv", sort={"_id": 1})
    assert data == b'_id,a,b\n1,1,\n2,,""\n'
    _, data = await exported(bench, "csv", projection={"c": 1, "a": 1}, sort={"_id": 1})
    assert data == b"_id,c,a\n1,,1\n2,,\n"
    _, data = await exported(bench, "csv", filter={"a": 9})
    assert data == b""


async def test_parquet_has_native_types(bench: Bench, database: Database) -> None:
    at = datetime(2026, 1, 31, 12, 0, 0, 5000, UTC)
    document = {
        "n": 1,
        "f": 0.5,
        "ok": True,
        "at": at,
        "raw": b"\0\xff",
        "text": "ü",
        "mixed": 1,
        "o": {"a": [at]},
    }
    database.orders.insert_many(
        [{"_id": bson.ObjectId(OID), **document}, {"_id": "x", "n": 1 << 60, "f": 2, "mixed": "a"}]
    )
    result, data = await exported(bench, "parquet")
    assert (result["count"], result["file"]["content_type"]) == (
        2,
        "application/vnd.apache.parquet",
    )
    assert parquet.types(data) == {
        "_id": "VARCHAR", "n": "BIGINT", "f": "DOUBLE", "ok": "BOOLEAN",
        "at": "TIMESTAMP WITH TIME ZONE", "raw": "BLOB", "text": "VARCHAR", "mixed": "VARCHAR",
        "o": "VARCHAR",
    }  # fmt: skip
    nothing = dict.fromkeys(("ok", "at", "raw", "text", "o"))
    assert parquet.rows(data) == [
        {"_id": OID, **document, "mixed": "1", "o": '{"a":[{"$date":"2026-01-31T12:00:00.005Z"}]}'},
        {"_id": "x", "n": 1 << 60, "f": 2.0, **nothing, "mixed": "a"},
    ]
    database.orders.delete_many({})
    source = await bench.upload("orders.parquet", data, "")
    assert await ask(bench, mongo_import_file, {"source": {"file": source}}) == {
        "inserted": 2,
        "bad_count": 0,
    }
    stored = database.orders.find_one({"_id": OID})
    assert stored is not None
    assert {name: stored[name] for name in ("n", "f", "ok", "at", "raw", "text")} == {
        name: document[name] for name in ("n", "f", "ok", "at", "raw", "text")
    }
    assert database.orders.find_one({"_id": "x"}) == {
        "_id": "x",
        "n": 1 << 60,
        "f": 2.0,
        "mixed": "a",
    }


def test_parquet_of_other_programs_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with duckdb.connect() as other:
        other.execute(
            "COPY (SELECT 1::UTINYINT AS _id, DATE '2026-01-02' AS day,"
            " 1.10::DECIMAL(9,2) AS price, [1, NULL] AS l, {'a': {'b': 1}} AS o,"
            " TIMESTAMP '2026-01-02 03:04:05' AS at, TIME '03:04:05' AS t, NULL AS none)"
            f" TO '{path}'"
        )
    (entry,) = read_documents([path.read_bytes()], "parquet", None)
    assert (entry.number, entry.problem) == (1, "")
    assert entry.document == {
        "_id": 1, "day": datetime(2026, 1, 2, tzinfo=UTC), "l": [1, None], "o": {"a": {"b": 1}},
        "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "t": "03:04:05",
        "price": bson.Decimal128("1.10"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.parquet", b"PAR1 and nothing else"),
        ("x.json", b'{"a": 1}'),
        ("x.json", b'[{"a": 1}, '),
        ("x.csv", b"a,a\n1,2\n"),
        ("x.ndjson.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-4]),
        ("x.ndjson", b'{"a": "\xff"}\n'),
    ],
)
async def test_malformed_files_fail_permanently(bench: Bench, name: str, data: bytes) -> None:
    error = await failure(
        bench, mongo_import_file, {"source": {"file": await bench.upload(name, data, "")}}
    )
    assert (error.type, error.retryable) == ("invalid_file", False)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("format", ["csv", "ndjson", "json", "parquet"])
async def test_compressed_files_are_exported_and_imported(
    bench: Bench, database: Database, format: str, compression: str
) -> None:
    rows = [{"_id": f"{number:04}", "name": f"line\n{number}"} for number in range(3000)]
    database.orders.insert_many(rows)
    result, data = await exported(bench, format, compression=compression, sort={"_id": 1})
    assert result["count"] == 3000
    if format == "parquet":
        assert parquet.compression(data) == {compression.upper()}
    else:
        unpacked = gzip.decompress(data) if compression == "gzip" else zstd.decompress(data)
        assert unpacked.count(b"2999") == 2
    database.orders.delete_many({})
    source = await bench.upload(result["file"]["name"], data, "")
    assert await ask(bench, mongo_import_file, {"source": {"file": source}}) == {
        "inserted": 3000,
        "bad_count": 0,
    }
    assert list(database.orders.find()) == rows


async def test_import_counts_and_logs_bad_documents(bench: Bench, database: Database) -> None:
    database.orders.insert_one({"_id": "taken"})
    lines = [
        '{"_id": 1}',
        "{no json",
        "[1]",
        "",
        '{"_id": "taken"}',
        '{"a": {"$where": "1"}}',
        '{"a": {"$oid": "x"}}',
        "{}",
    ]
    source = await bench.upload("orders.ndjson", "\n".join(lines).encode(), "")
    assert await ask(bench, mongo_import_file, {"source": {"file": source}}) == {
        "inserted": 2,
        "bad_count": 5,
    }
    assert [line["number"] for line in bench.recorder.lines] == [2, 3, 6, 7, 5]
    assert database.orders.count_documents({}) == 3


async def test_a_large_import_is_applied_once(bench: Bench, database: Database) -> None:
    text = "".join(f'{{"n": {number}, "text": "{"é" * 200}"}}\n' for number in range(5000))
    source = await bench.upload("orders.ndjson", text.encode(), "")
    id = new_id()
    database.orders.insert_one({"_id": derived_id(id, 77), "n": 76})
    assert await ask(bench, mongo_import_file, {"source": {"file": source}}, id=id) == {
        "inserted": 5000,
        "bad_count": 0,
    }
    assert database.orders.count_documents({}) == 5000
    assert bench.recorder.progressed[-1]["current"] == bench.recorder.progressed[-1]["total"]
