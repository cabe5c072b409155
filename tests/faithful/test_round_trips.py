"""x → y → x through file.convert is the identity, but for what docs/data.md lists.

The exceptions are its rows: `EXCEPTIONS` names each of them, and what the strategies leave out.
"""

import csv
import io
import itertools
import json
import math
import re
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tandem_worker.tasks.file.convert import convert as file_convert
from tests.worker.bench import Bench, open_bench

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
# By the first cell of the row in docs/data.md: what keeps such values out of the tests here.
EXCEPTIONS = {
    "NaN and the infinities": "floats are finite",
    "types": "a CSV column is compared as text",
    "`True`, `TRUE`, `False`, `FALSE` in CSV": "not among the fields",
    "types that JSON does not have": "through JSON, tables have JSON's own types",
    "objects, lists, columns of mixed types": "columns have one plain type",
    "an integer in a column with fractions": "a column has either",
    "how a number in JSON is spelled: `3.10`, `1e5`": "JSON is compared by value",
    "the sign of the integer `-0` in JSON": "Python's integers have none",
    "a key that an object does not have": "all rows have all keys",
    "a key that an object has twice": "Python's dicts have none",
    "objects that have no keys, in the whole file": "tables have a column",
}
calls = itertools.count()
examples = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["", " ", '"', '""', ",", ";", "\n", "\r\n", "\r", "\\.", "NULL", "null", "true", "007", "1E5"]
)
integers = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 2**53 + 1, -(2**63), 2**63 - 1])
floats = st.floats(allow_nan=False, allow_infinity=False)
names = st.lists(texts, min_size=1, max_size=3, unique=True)


@st.composite
def tables(draw: st.DrawFn, *kinds: st.SearchStrategy[Any]) -> list[dict[str, Any]]:
    """Rows with the same keys; each column has values of one kind, and nulls."""
    columns = {name: draw(st.sampled_from(kinds)) for name in draw(names)}
    count = draw(st.integers(1, 8))
    return [{name: draw(st.none() | kind) for name, kind in columns.items()} for _ in range(count)]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as opened:
        yield opened


async def converted(bench: Bench, data: bytes, from_: str, to: str) -> bytes:
    source = {"file": await bench.upload(f"x.{from_}", data, "application/octet-stream")}
    made = await bench.run(file_convert, {"source": source, "to": to}, id=f"J{next(calls)}")
    job, _, name = made["file"]["file"].partition("/")
    return await bench.resources.files.load(f"jobs/{job}/0/{name}", 1 << 30)


async def there_and_back(bench: Bench, data: bytes, from_: str, *by: str) -> bytes:
    for here, to in itertools.pairwise((from_, *by, from_)):
        data = await converted(bench, data, here, to)
    return data


def test_the_exceptions_are_those_of_the_page() -> None:
    part = PAGE.read_text().partition("### What `file.convert` does not keep\n")[2]
    rows = re.findall(r"^\| (.*?) \|", part.partition("\n## ")[0], re.MULTILINE)
    assert [row for row in rows if row != "what"] == list(EXCEPTIONS)


def csv_of(rows: list[list[str | None]]) -> bytes:
    """CSV in which a null is empty and an empty text is quoted, as PostgreSQL writes it."""

    def cell(value: str | None) -> str:
        return "" if value is None else '"' + value.replace('"', '""') + '"'

    return "".join(",".join(map(cell, row)) + "\n" for row in rows).encode()


def fields_of(data: bytes) -> list[list[str | None]]:
    """The fields of CSV, with nulls: by Python's csv, with the quotes that it would not show."""
    marked = re.sub(r'(^|,)""(?=,|$)', r"\1\\e", data.decode(), flags=re.MULTILINE)
    rows = csv.reader(io.StringIO(marked, newline=""))
    return [[None if one == "" else "" if one == "\\e" else one for one in row] for row in rows]


plain_texts = st.text("abcé日01-.,;| ", max_size=5) | st.sampled_from(
    ["", "007", "3.10", "1E5", "-0", "1e16", "-0.0", "null", "true", "[1", "2]", "9" * 19, "0.1"]
)


@examples
@given(data=st.data())
@pytest.mark.parametrize("by", ["json", "ndjson", "parquet", "csv"])
async def test_csv_comes_back(bench: Bench, by: str, data: st.DataObject) -> None:
    width = data.draw(st.integers(2, 4))
    kinds = [st.just("x"), plain_texts, st.integers().map(str)]
    kinds += [floats.map(lambda one: msgspec.json.encode(one).decode())]
    columns = [data.draw(st.sampled_from(kinds)) for _ in range(width)]
    head: list[str | None] = [f"c{number}" for number in range(width)]
    count = data.draw(st.integers(1, 6))
    rows = [head, *([data.draw(st.none() | one) for one in columns] for _ in range(count))]
    back = await there_and_back(bench, csv_of(rows), "csv", by)
    assert fields_of(back) == rows


@examples
@given(rows=tables(texts, integers, floats, st.booleans(), st.lists(integers | texts, max_size=2)))
@pytest.mark.parametrize("by", [("json",), ("ndjson", "json"), ("json", "ndjson", "json")])
async def test_json_stays_what_it_is_in_json(
    bench: Bench, by: tuple[str, ...], rows: list[dict[str, Any]]
) -> None:
    back = await there_and_back(bench, json.dumps(rows).encode(), "json", *by)
    assert json.loads(back) == rows
    assert repr(json.loads(back)) == repr(rows)  # -0.0 is not 0


@examples
@given(rows=tables(texts, integers, floats, st.booleans()))
async def test_ndjson_comes_back_from_parquet(bench: Bench, rows: list[dict[str, Any]]) -> None:
    given_ = "".join(json.dumps(row) + "\n" for row in rows).encode()
    back = await there_and_back(bench, given_, "ndjson", "parquet")
    assert [repr(json.loads(line)) for line in back.splitlines()] == list(map(repr, rows))


@examples
@given(rows=tables(texts.filter(lambda one: not _is_typed(one)), integers, floats))
async def test_ndjson_comes_back_from_csv(bench: Bench, rows: list[dict[str, Any]]) -> None:
    # As msgspec writes numbers: `1e+16` would be text by the rule for CSV.
    given_ = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    back = await there_and_back(bench, given_, "ndjson", "csv")
    found = [json.loads(line) for line in back.splitlines()]
    assert [list(map(repr, row.items())) for row in found] == [
        list(map(repr, row.items())) for row in rows
    ]


@pytest.mark.parametrize("name", ["a;b", "|", "a\tb", "sep=;", "sep=x", "\ufeffa", "", " ", "\\."])
async def test_a_name_is_not_taken_for_a_delimiter(bench: Bench, name: str) -> None:
    given_ = msgspec.json.encode({name: "c;d|e\tf"}) + b"\n"
    assert await there_and_back(bench, given_, "ndjson", "csv") == given_


def _is_typed(one: str) -> bool:
    """Whether a column of such texts becomes numbers or booleans."""
    return one.lower() in ("true", "false") or re.fullmatch(r"-?[0-9].*", one) is not None


JSON_TYPES = [pa.string(), pa.int64(), pa.float64(), pa.bool_()]
PARQUET_TYPES = [*JSON_TYPES, pa.decimal128(20, 4), pa.date32(), pa.timestamp("us"), pa.binary()]


@examples
@given(rows=tables(texts, integers, floats, st.booleans()), data=st.data())
async def test_parquet_comes_back(
    bench: Bench, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    by = data.draw(st.sampled_from(["json", "ndjson", "parquet"]))
    table = pa.Table.from_pylist(rows)
    # A column of nulls has no type that JSON could hold.
    table = table.drop_columns([one.name for one in table.schema if pa.types.is_null(one.type)])
    if not table.column_names:
        return
    out = io.BytesIO()
    pq.write_table(table, out)
    back = pq.read_table(io.BytesIO(await there_and_back(bench, out.getvalue(), "parquet", by)))
    assert back.schema.remove_metadata() == table.schema.remove_metadata()
    assert repr(back.to_pylist()) == repr(table.to_pylist())


@examples
@given(
    number=st.from_regex(
        r"-?(0|[1-9][0-9]{0,20})\.[0-9]{1,20}([eE][-+]?[0-9]{1,3})?", fullmatch=True
    )
)
@example(number="0.0E80")  # beyond what Arrow's decimals hold
async def test_the_digits_of_a_json_number_reach_csv(bench: Bench, number: str) -> None:
    made = await converted(bench, b'{"v":%s}\n' % number.encode(), "ndjson", "csv")
    assert made.decode() == f"v\n{number}\n"
    table = pq.read_table(
        io.BytesIO(await converted(bench, b'{"v":%s}\n' % number.encode(), "ndjson", "parquet"))
    )
    (value,) = table["v"].to_pylist()
    if isinstance(value, float):
        assert math.isfinite(value)
        assert Fraction(number) == Fraction(repr(value))
    else:
        assert value == number
