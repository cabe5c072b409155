"""`file.convert`: every direction, read back by Python's csv, msgspec and DuckDB."""

import csv
import datetime as dt
import decimal
import gzip
import io
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from tandem_worker.archives.compression import zstd
from tandem_worker.errors import TaskError
from tandem_worker.tables.json_array import elements
from tandem_worker.task import task_of
from tandem_worker.tasks.file.convert import convert
from tests.worker.archives.test_archives import fetched, pool, run
from tests.worker.bench import Bench, open_bench
from tests.worker.tables.parquet import compression as compression_of
from tests.worker.tables.parquet import rows

MIB = 1 << 20
ROWS: list[dict[str, Any]] = [
    {
        "id": 1,
        "name": 'Ada, "Countess"',
        "rate": 1.5,
        "ok": True,
        "zip": "01234",
        "note": "two\nlines",
    },
    {"id": -2, "name": "Grace", "rate": 2.0, "ok": False, "zip": "99999", "note": ""},
    {"id": None, "name": "Zoë", "rate": None, "ok": None, "zip": "1", "note": "x"},
]
CSV = (
    "id,name,rate,ok,zip,note\n"
    '1,"Ada, ""Countess""",1.5,true,01234,"two\nlines"\n'
    '-2,Grace,2.0,false,99999,""\n'
    ",Zoë,,,1,x\n"
)  # fmt: skip


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as bench:
        yield bench


calls = itertools.count()


async def converted(
    bench: Bench, data: bytes, name: str = "rows", **options: Any
) -> tuple[bytes, str, int]:
    """The result of file.convert: bytes, name and row count."""
    source = await bench.upload(name, data, "application/octet-stream")
    result = await bench.run(convert, {"source": {"file": source}, **options}, id=f"J{next(calls)}")
    assert sorted(result) == ["file", "row_count"]
    return await fetched(bench, result["file"]), result["file"]["name"], result["row_count"]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def made(format: str, rows: list[dict[str, Any]]) -> bytes:
    match format:
        case "csv":
            return CSV.encode()
        case "ndjson":
            return b"\n".join(map(msgspec.json.encode, rows))
        case "json":
            return msgspec.json.format(msgspec.json.encode(rows))
    return parquet(rows)


def read(format: str, data: bytes) -> list[dict[str, Any]]:
    match format:
        case "csv":
            return list(csv.DictReader(io.StringIO(data.decode(), newline="")))
        case "ndjson":
            assert data[-1:] in (b"\n", b"")
            return msgspec.json.Decoder(dict[str, Any]).decode_lines(data)
        case "json":
            return msgspec.json.decode(data, type=list[dict[str, Any]])
    # DuckDB cannot read a table without columns.
    return rows(data) if pq.read_schema(io.BytesIO(data)).names else []


@pytest.mark.parametrize("to", ["csv", "ndjson", "json", "parquet"])
async def test_rows_survive_in_every_direction(bench: Bench, to: str) -> None:
    wanted: list[dict[str, Any]] = (
        ROWS if to != "csv" else list(csv.DictReader(io.StringIO(CSV, newline="")))
    )
    for format in ("csv", "ndjson", "json", "parquet"):
        data, name, count = await converted(bench, made(format, ROWS), f"my.{format}", to=to)
        assert (read(to, data), name, count) == (wanted, f"my.{to}", 3), format
        given, _, _ = await converted(
            bench, made(format, ROWS), "unnamed", **{"from": format, "to": to}
        )
        assert read(to, given) == wanted
        detected, _, _ = await converted(bench, made(format, ROWS), "unnamed", to=to)
        assert read(to, detected) == wanted


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
async def test_compression_in_and_out(bench: Bench, tmp_path: Path, compression: str) -> None:
    packed = gzip.compress if compression == "gzip" else zstd.compress
    for format, to in (
        ("csv", "ndjson"),
        ("json", "csv"),
        ("ndjson", "json"),
        ("parquet", "ndjson"),
    ):
        source = packed(made(format, ROWS))
        data, name, _ = await converted(
            bench, source, f"my.{format}.gz", to=to, compression=compression
        )
        assert name == f"my.{to}." + {"gzip": "gz", "zstd": "zst"}[compression]
        (tmp_path / name).write_bytes(data)
        plain = run(compression, "-dc", tmp_path / name).encode()
        assert len(read(to, plain)) == 3
    data, name, _ = await converted(
        bench, made("csv", ROWS), "my.csv", to="parquet", compression=compression
    )
    assert compression_of(data) == {compression.upper()}
    assert (read("parquet", data), name) == (ROWS, "my.parquet")
    with pytest.raises(TaskError) as error:
        await converted(bench, packed(made("csv", ROWS))[:-9], "x.csv", to="json")
    assert (error.value.type, error.value.retryable) == ("invalid_file", False)


async def test_delimiter_and_encoding_are_detected(bench: Bench) -> None:
    rows = [
        ["Straße", "Größe", "Preis"],
        *(["Müllerstraße, Köln", f"{number},5", "über 10 €"] for number in range(50)),
    ]
    for delimiter, encoding in itertools.product(
        ",;\t|", ["utf-8", "utf-8-sig", "utf-16", "cp1252"]
    ):
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter).writerows(rows)
        data, _, count = await converted(bench, text.getvalue().encode(encoding), "x.csv", to="csv")
        assert (list(csv.reader(io.StringIO(data.decode()))), count) == (rows, 50), (
            delimiter,
            encoding,
        )
    cyrillic = "имя,город\n" + "Анна,Москва и всё остальное\n" * 50
    data, _, _ = await converted(bench, cyrillic.encode("cp1251"), "x.csv", to="csv")
    assert data.decode() == cyrillic


async def test_a_given_delimiter_and_encoding_are_used(bench: Bench) -> None:
    data = "a:b\nü:1\n".encode("cp850")
    made, _, _ = await converted(bench, data, "x.csv", to="json", delimiter=":", encoding="cp850")
    assert read("json", made) == [{"a": "ü", "b": 1}]
    latin = '{"a": "ü"}\n'.encode("latin-1")
    made, _, _ = await converted(bench, latin, "x.ndjson", to="ndjson", encoding="latin-1")
    assert read("ndjson", made) == [{"a": "ü"}]


async def test_a_column_has_the_type_that_all_its_fields_have(bench: Bench) -> None:
    # The value that breaks a type comes last, far behind any sample.
    columns: dict[str, tuple[str, str, type]] = {
        "int": ("7", "-7", int),
        "number": ("7.5", "0.001", float),
        "code": ("7", "007", str),
        "long": ("7", "12345678901234567890", str),
        "precise": ("1.5", "0.12345678901234567890", str),
        "bool": ("true", "False", bool),
        "yes": ("true", "yes", str),
        "zero": ("0", "-0", str),
        "cents": ("3.5", "3.10", str),
        "digits": ("1.5", "100000000000000.01", str),
        "empty": ("", "", type(None)),
        "inf": ("1.0", "inf", str),
    }
    first, last = (
        ",".join(texts)
        for texts in zip(*((one, other) for one, other, _ in columns.values()), strict=True)
    )
    data = f"{','.join(columns)}\n" + f"{first}\n" * 9000 + f"{last}\n"
    made, _, count = await converted(bench, data.encode(), "x.csv", to="ndjson")
    rows = read("ndjson", made)
    assert (len(rows), count) == (9001, 9001)
    assert {name: type(value) for name, value in rows[-1].items()} == {
        name: kind for name, (*_, kind) in columns.items()
    }
    assert {name: type(value) for name, value in rows[0].items()} == {
        name: kind for name, (*_, kind) in columns.items()
    }
    assert [rows[-1][name] for name in ("code", "long", "precise", "inf", "empty")] == [
        "007", "12345678901234567890", "0.12345678901234567890", "inf", None
    ]  # fmt: skip


async def test_objects_with_different_keys_become_columns(bench: Bench) -> None:
    rows = [
        {"a": 1},
        {"b": [1, {"c": None}], "a": 2.5},
        {"mixed": "text"},
        {"mixed": 5, "a": None},
        {"big": 1 << 70},
    ]
    source = b"\n\n".join(map(msgspec.json.encode, rows))
    made, _, count = await converted(bench, source, "x.jsonl", to="parquet")
    assert count == 5
    full = dict.fromkeys(("a", "b", "mixed", "big"))
    assert read("parquet", made) == [
        {**full, "a": 1.0},
        {**full, "a": 2.5, "b": '[1,{"c":null}]'},
        {**full, "mixed": "text"},
        {**full, "mixed": "5"},
        {**full, "big": str(1 << 70)},
    ]
    # JSON to JSON does not change any value.
    odd = b'[ 1.10, {"a" : [ ]},\n"\\u00e4", null, 123456789012345678901234567890 ]'
    made, _, _ = await converted(bench, odd, "x.json", to="ndjson")
    assert made == b'1.10\n{"a":[]}\n"\\u00e4"\nnull\n123456789012345678901234567890\n'


async def test_parquet_values_that_json_lacks(bench: Bench) -> None:
    row = {
        "when": dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC),
        "day": dt.date(2026, 1, 2),
        "price": decimal.Decimal("1.10"),
        "raw": b"\0\xff",
        "nan": float("nan"),
        "deep": {"x": [1, None]},
    }
    data = parquet([row])
    made, _, _ = await converted(bench, data, to="json")
    assert read("json", made) == [
        {"when": "2026-01-02T03:04:05.000678Z", "day": "2026-01-02", "price": "1.10",
         "raw": "AP8=", "nan": None, "deep": {"x": [1, None]}}
    ]  # fmt: skip
    made, _, _ = await converted(bench, data, to="csv")
    assert (
        made.decode().splitlines()[1]
        == '2026-01-02T03:04:05.000678Z,2026-01-02,1.10,AP8=,NaN,"{""x"":[1,null]}"'
    )
    made, _, _ = await converted(bench, data, to="parquet", compression="gzip")
    assert (
        pq.read_table(io.BytesIO(made)).equals(pq.read_table(io.BytesIO(data))) is False
    )  # a NaN is not itself
    assert pq.read_schema(io.BytesIO(made)) == pq.read_schema(io.BytesIO(data))
    nanos = pa.table({"t": pa.array([1, 1000], pa.timestamp("ns"))})
    out = io.BytesIO()
    pq.write_table(nanos, out)
    made, _, _ = await converted(bench, out.getvalue(), to="csv")
    assert made == b"t\n1970-01-01T00:00:00.000000001\n1970-01-01T00:00:00.000001000\n"


@pytest.mark.parametrize("to", ["csv", "ndjson", "json", "parquet"])
async def test_tables_without_rows(bench: Bench, to: str) -> None:
    for data, name in (
        (b"", "x.csv"),
        (b"a,b\n", "x.csv"),
        (b"", "x.ndjson"),
        (b" [ ] ", "x.json"),
        (parquet([]), "x"),
    ):
        made, _, count = await converted(bench, data, name, to=to)
        assert (read(to, made), count) == ([], 0)


WRONG: dict[str, tuple[bytes, str, str]] = {
    "ragged": (b"a,b\n1\n", "x.csv", "invalid_file"),
    "columns twice": (b"a,a\n1,2\n", "x.csv", "invalid_file"),
    "not UTF-8 after all": (b"a\n" + b"x\n" * 50_000 + b"\xff\n", "x.csv", "invalid_file"),
    "no JSON": (b'{"a": 1}\n{"a": }\n', "x.ndjson", "invalid_file"),
    "no object": (b'{"a": 1}\n[]\n', "x.ndjson", "invalid_file"),
    "no array": (b'{"a": 1}', "x.json", "invalid_file"),
    "array cut": (b'[{"a": 1}, {"a": 2', "x.json", "invalid_file"),
    "comma missing": (b'[{"a": 1} {"a": 2}]', "x.json", "invalid_file"),
    "comma too many": (b'[{"a": 1},]', "x.json", "invalid_file"),
    "something behind": (b'[{"a": 1}] x', "x.json", "invalid_file"),
    "NaN": (b'[{"a": NaN}]', "x.json", "invalid_file"),
    "broken early": (b'[{"a" 1}, ' + b'{"a": 1}, ' * 50_000 + b"{}]", "x.json", "invalid_file"),
    "nested": (b"[" * 100_000, "x.json", "invalid_file"),
    "lone surrogate": (b'[{"a": "\\ud800"}]', "x.json", "invalid_file"),
    "Parquet cut": (parquet(ROWS)[:-20], "x", "invalid_file"),
    "Parquet damaged": (
        parquet(ROWS)[:20] + b"\xff" * 60 + parquet(ROWS)[80:],
        "x",
        "invalid_file",
    ),
    "no Parquet": (b"hello", "x.parquet", "invalid_file"),
    "long line": (b"a\n" + b"x" * (17 * MIB), "x.csv", "too_large"),
    "long element": (b'["' + b"x" * (40 * MIB), "x.json", "too_large"),
    "many columns": (b",".join(b"%d" % number for number in range(10_001)), "x.csv", "too_large"),
}


async def test_malformed_sources_fail_permanently(bench: Bench) -> None:
    found: dict[str, Any] = {}
    for name, (data, file, _) in WRONG.items():
        try:
            found[name] = await converted(
                bench, data, file, to="parquet" if name != "Parquet cut" else "csv"
            )
        except TaskError as error:
            found[name] = (error.type, error.retryable)
    assert found == {name: (type, False) for name, (*_, type) in WRONG.items()}


def test_an_array_is_read_in_pieces_of_any_size() -> None:
    values = [
        1,
        -2.5e10,
        'a]\\"[,',
        [],
        {},
        [[1, 2], {"x": "}"}],
        None,
        True,
        "ü" * 100,
        {"a": [1, {"b": "\\"}]},
        0,
    ]
    for text in (
        msgspec.json.encode(values).decode(),
        msgspec.json.format(msgspec.json.encode(values)).decode(),
    ):
        for size in (1, 2, 7, 1000):
            pieces = (text[start : start + size] for start in range(0, len(text), size))
            found = [msgspec.json.decode(element) for element in elements(pieces)]
            assert found == values


async def test_a_large_table_is_converted_in_bounded_memory(bench: Bench) -> None:
    text = "".join(
        f'{number},"name {number}",{number / 8},text that takes some room in the file\n'
        for number in range(10_000)
    )
    data = b"id,name,rate,text\n" + text.encode() * 12
    peak = 0
    for name, to in (("x.csv", "parquet"), ("x.csv", "json")):
        made, _, count = await converted(bench, data, name, to=to)
        assert count == 120_000
        (child,) = pool()
        with Path(f"/proc/{child.pid}/status").open() as status:
            peak = max(int(line.split()[1]) >> 10 for line in status if line.startswith("VmHWM"))
        rows = read(to, made)
        assert len(rows) == 120_000
        assert rows[-1] == {
            "id": 9999,
            "name": "name 9999",
            "rate": 9999 / 8,
            "text": "text that takes some room in the file",
        }
    assert peak < 400
    reported = [report["current"] for report in bench.recorder.progressed]
    assert reported[-1] == len(data)
    assert len(reported) > 20


def test_invalid_payloads_are_refused() -> None:
    task = task_of(convert)
    source = {"source": {"file": "x"}, "to": "csv"}
    for good in (
        {"delimiter": ";", "encoding": "latin-1", "from": "csv"},
        {"compression": "zstd", "encoding": None},
    ):
        task.decode(msgspec.json.encode(source | good))
    for bad in (
        {"delimiter": "ab"},
        {"delimiter": '"'},
        {"encoding": "rot13"},
        {"encoding": "x"},
        {"to": "xlsx"},
        {"a": 1},
    ):
        with pytest.raises(ValidationError):
            task.decode(msgspec.json.encode(source | bad))
