"""Tables through file.convert and the imports: the values are those of duckdb and pandas' Arrow."""

import csv
import io
import sqlite3
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tandem_worker.errors import TaskError
from tandem_worker.tasks.file.convert import convert as file_convert
from tandem_worker.tasks.sql.imports import import_ as sql_import
from tests.worker.bench import Bench, open_bench


async def converted(bench: Bench, data: bytes, name: str, **payload: Any) -> bytes:
    source = {"file": await bench.upload(name, data, "application/octet-stream")}
    made = await bench.run(file_convert, {"source": source, **payload}, stamp=7)
    return await bench.resources.files.load(f"jobs/job/7/{made['file']['name']}", 1 << 30)


def parquet(column: pa.Array, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"v": column}), file, **options)
    return file.getvalue()


async def values(bench: Bench, column: pa.Array, **options: Any) -> list[Any]:
    """What NDJSON says of a Parquet column."""
    made = await converted(bench, parquet(column, **options), "x.parquet", to="ndjson")
    return [msgspec.json.decode(line)["v"] for line in made.splitlines()]


@pytest.fixture
async def bench(tmp_path: Path) -> Any:
    database = tmp_path / "shop.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE stock (item text, amount integer)")
    async with open_bench(tmp_path, sql={"lite": f"sqlite://{database}?mode=rw"}) as opened:
        yield opened


async def imported(bench: Bench, tmp_path: Path, data: bytes, name: str, **more: Any) -> list[Any]:
    source = {"file": await bench.upload(name, data, "application/octet-stream")}
    payload = {"connection": "lite", "table": "stock", "source": source, **more}
    await bench.run(sql_import, payload, id=source["file"])
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        return connection.execute("SELECT item, amount FROM stock").fetchall()


@pytest.mark.parametrize("text", ["100000000000000.01", "3.10", "0.12345678901234567", "1E5", "-0"])
async def test_a_number_that_would_change_stays_text(bench: Bench, text: str) -> None:
    made = await converted(bench, f"v\n1.5\n{text}\n".encode(), "x.csv", to="json")
    assert [row["v"] for row in msgspec.json.decode(made)] == ["1.5", text]


@pytest.mark.parametrize(
    ("fields", "values"),
    [
        (["1.5", "2", ""], [1.5, 2, None]),
        (["9223372036854775807", "-9223372036854775808"], [2**63 - 1, -(2**63)]),
        (["9007199254740993", "0.5"], ["9007199254740993", "0.5"]),
        (["1e16", "-0.0", "5e-324"], [1e16, -0.0, 5e-324]),
        (["true", "false"], [True, False]),
        (["[1", "2]"], ["[1", "2]"]),
        (['"1"', "2"], ['"1"', "2"]),
        (["null", "1"], ["null", "1"]),
        ([" 1", "2"], [" 1", "2"]),
    ],
)
async def test_a_column_comes_back_letter_by_letter(
    bench: Bench, fields: list[str], values: list[Any]
) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["v", "k"], *([one, "k"] for one in fields)])
    made = await converted(bench, text.getvalue().encode(), "x.csv", to="json")
    assert [(row["v"], type(row["v"])) for row in msgspec.json.decode(made)] == [
        (value, type(value)) for value in values
    ]
    back = await converted(bench, made, "x.json", to="csv")
    assert list(csv.reader(io.StringIO(back.decode()))) == [["v", "k"], *([f, "k"] for f in fields)]


async def test_null_and_empty_are_kept_apart(bench: Bench, tmp_path: Path) -> None:
    data = b's,i\n,\n"",3\n'
    assert await converted(bench, data, "x.csv", to="csv") == data
    made = await converted(bench, data, "x.csv", to="json")
    assert msgspec.json.decode(made) == [{"s": None, "i": None}, {"s": "", "i": 3}]
    file = tmp_path / "made.parquet"
    file.write_bytes(await converted(bench, data, "x.csv", to="parquet"))
    found = duckdb.sql(f"SELECT * FROM '{file}'")
    assert found is not None
    assert found.fetchall() == [(None, None), ("", 3)]


@pytest.mark.parametrize("data", [b'a,b\n1,"x\n2,y\n3,z\n', b'a,b\n1,"5" disk"\n'])
async def test_broken_quotes_are_refused_with_their_line(bench: Bench, data: bytes) -> None:
    with pytest.raises(TaskError, match="line 2") as caught:
        await converted(bench, data, "x.csv", to="json")
    assert (caught.value.type, caught.value.retryable) == ("invalid_file", False)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\nitem,amount\ncup,1\n", "x.csv"),
        (b'{}\n{"item":"cup","amount":1}\n', "x.ndjson"),
        (b"item\tamount\ncup\t1\n", "x.tsv"),
        (b"item;amount\ncup;1\n", "x.csv"),
        (b"sep=;\nitem;amount\ncup;1\n", "x.csv"),
        (b"sep=:\ritem:amount\rcup:1\r", "x.csv"),
        (b"\n,\nitem,amount\ncup,1\n", "x.csv"),
        (b"item,amount\rcup,1\r", "x.csv"),
        (b"\xef\xbb\xbfitem,amount\r\ncup,1\r\n", "x.csv"),
    ],
)
async def test_imports_read_tables_as_convert_does(
    bench: Bench, tmp_path: Path, data: bytes, name: str
) -> None:
    found = await imported(bench, tmp_path, data, name)
    assert [row for row in found if row != (None, None)] == [("cup", 1)]


async def test_a_missing_key_is_null_and_an_unknown_one_is_named(
    bench: Bench, tmp_path: Path
) -> None:
    data = b'{"item":"cup"}\n{"item":"mug","amount":2}\n'
    assert await imported(bench, tmp_path, data, "x.ndjson") == [("cup", None), ("mug", 2)]
    with pytest.raises(TaskError, match="'colour'"):
        await imported(bench, tmp_path, b'{"colour":"red"}\n', "y.ndjson", max_bad=0)


async def test_a_table_that_is_missing_is_an_error_of_an_empty_file_too(bench: Bench) -> None:
    source = {"file": await bench.upload("x.csv", b"", "text/csv")}
    with pytest.raises(TaskError, match="no table 'nowhere'"):
        await bench.run(sql_import, {"connection": "lite", "table": "nowhere", "source": source})


async def test_times_beyond_python_come_out_as_arrow_writes_them(bench: Bench) -> None:
    days = pa.array([2932896, 2932897, None], pa.int32()).cast(pa.date32())
    assert await values(bench, days) == ["9999-12-31", "10000-01-01", None]
    moments = pa.array([253402300800000000], pa.int64()).cast(pa.timestamp("us"))
    assert await values(bench, moments) == ["10000-01-01T00:00:00.000000"]
    clock = pa.array([1, 1000], pa.int64()).cast(pa.time64("ns"))
    assert (await values(bench, clock))[0] == "00:00:00.000000001"


async def test_a_column_of_nanoseconds_has_one_form(bench: Bench) -> None:
    whole = pa.array([1_000] * 8999 + [1], pa.int64()).cast(pa.timestamp("ns"))
    found = await values(bench, whole)
    assert {len(text) for text in found} == {len("1970-01-01T00:00:00.000000001")}
    plain = pa.array([1_000], pa.int64()).cast(pa.timestamp("ns"))
    assert await values(bench, plain) == ["1970-01-01T00:00:00.000001"]


async def test_old_timestamps_of_96_bits(bench: Bench) -> None:
    moments = pa.array([datetime(9999, 12, 31), datetime(1, 1, 1)], pa.timestamp("us"))  # noqa: DTZ001 - as the files are
    found = await values(bench, moments, use_deprecated_int96_timestamps=True)
    assert found == ["9999-12-31T00:00:00", "0001-01-01T00:00:00"]


async def test_decimals_have_plain_digits(bench: Bench) -> None:
    column = pa.array([Decimal(0), Decimal("1E-10")], pa.decimal128(38, 18))
    made = await converted(bench, parquet(column), "x.parquet", to="csv")
    assert made.decode().splitlines()[1:] == ["0.000000000000000000", "0.000000000100000000"]
    assert await values(bench, column) == ["0.000000000000000000", "0.000000000100000000"]


async def test_32_bit_floats_have_their_own_shortest_form(bench: Bench) -> None:
    column = pa.array([0.1, 16777216.0], pa.float32())
    assert await values(bench, column) == [0.1, 16777216.0]
    made = await converted(bench, parquet(column), "x.parquet", to="csv")
    assert made.splitlines()[1] == b"0.1"


async def test_dates_stay_dates(bench: Bench) -> None:
    assert await values(bench, pa.array([date(2026, 1, 2)])) == ["2026-01-02"]
