"""Every Arrow type at its extremes, from Parquet to JSON, judged by duckdb and standard forms."""

import io
import itertools
import math
import struct
from collections.abc import AsyncIterator
from datetime import date, datetime, timedelta
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
from tests.worker.bench import Bench, open_bench

calls = itertools.count()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as opened:
        yield opened


def parquet(column: pa.Array, **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"v": column}), file, **options)
    return file.getvalue()


async def converted(bench: Bench, data: bytes, to: str) -> bytes:
    source = {"file": await bench.upload("x.parquet", data, "application/octet-stream")}
    made = await bench.run(file_convert, {"source": source, "to": to}, id=f"J{next(calls)}")
    job, _, name = made["file"]["file"].partition("/")
    return await bench.resources.files.load(f"jobs/{job}/0/{name}", 1 << 30)


async def values(bench: Bench, data: bytes) -> list[Any]:
    """What NDJSON says of the column `v`; fractions as Decimal, with their digits."""
    made = await converted(bench, data, "ndjson")
    decoder = msgspec.json.Decoder(float_hook=Decimal)
    return [decoder.decode(line)["v"] for line in made.splitlines()]


def counts(*given: int | None, type: pa.DataType) -> pa.Array:
    """Times by their count of units."""
    return pa.array(given, pa.int32() if type.bit_width == 32 else pa.int64()).cast(type)


WHOLE = [
    (pa.int8(), [-(2**7), 2**7 - 1, None]),
    (pa.int16(), [-(2**15), 2**15 - 1, None]),
    (pa.int32(), [-(2**31), 2**31 - 1, None]),
    (pa.int64(), [-(2**63), 2**63 - 1, None]),
    (pa.uint8(), [0, 2**8 - 1, None]),
    (pa.uint16(), [0, 2**16 - 1, None]),
    (pa.uint32(), [0, 2**32 - 1, None]),
    (pa.uint64(), [0, 2**64 - 1, None]),
    (pa.bool_(), [True, False, None]),
    (pa.string(), ["", "é\0\n", None]),
    (pa.large_string(), ["", "x", None]),
    (pa.string_view(), ["", "x" * 99, None]),
    (pa.list_(pa.int8()), [[], [1, None], None]),
    (pa.large_list(pa.string()), [[], ["a", None], None]),
    (pa.list_(pa.int8(), 2), [[1, None], [3, 4], None]),
    (pa.struct([("a", pa.int8()), ("b", pa.list_(pa.bool_()))]), [{"a": 1, "b": [None]}, None]),
    (pa.dictionary(pa.int8(), pa.string()), ["a", "b", "a", None]),
    (pa.null(), [None, None]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "given"), WHOLE, ids=[str(kind) for kind, _ in WHOLE])
async def test_types_that_json_has(
    bench: Bench, tmp_path: Path, kind: pa.DataType, given: list[Any]
) -> None:
    data = parquet(pa.array(given, kind))
    (tmp_path / "x.parquet").write_bytes(data)
    with duckdb.connect() as database:
        found = database.execute(
            "SELECT v FROM read_parquet(?)", [str(tmp_path / "x.parquet")]
        ).fetchall()
    read = [list(v) if isinstance(v, tuple) else v for (v,) in found]
    assert await values(bench, data) == read == given


@pytest.mark.parametrize(
    ("kind", "form"), [(pa.float16(), "e"), (pa.float32(), "f"), (pa.float64(), "d")]
)
async def test_floats_are_the_shortest_that_mean_the_same(
    bench: Bench, kind: pa.DataType, form: str
) -> None:
    size = struct.calcsize(form)
    patterns = [0x01, 0x3C00, 0x7BFF, 0x8000, 0x2E66] if form == "e" else range(1, 1 << 15, 997)
    shift = 0 if form == "e" else 8 * (size - 2)
    exact = [struct.unpack(f"<{form}", (n << shift).to_bytes(size, "little"))[0] for n in patterns]
    exact = [one for one in exact if math.isfinite(one)]
    found = await values(bench, parquet(pa.array(exact, kind)))
    assert [struct.pack(form, float(one)) for one in found] == [
        struct.pack(form, one) for one in exact
    ]
    if form == "e":
        assert found[-1] == Decimal("0.1")


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
async def test_what_is_no_finite_number_is_null_in_json_and_named_in_csv(
    bench: Bench, kind: pa.DataType
) -> None:
    data = parquet(pa.array([math.nan, math.inf, -math.inf, -0.0], kind))
    made = await converted(bench, data, "json")
    assert made.decode().count("null") == 3
    assert b"-0.0" in made
    assert (await converted(bench, data, "csv")).split() == [
        b"v", b"NaN", b"Infinity", b"-Infinity", b"-0.0"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (pa.decimal32(9, 2), ["9999999.99", "-0.01"]),
        (pa.decimal64(18, 9), ["0.000000001", "999999999.999999999"]),
        (pa.decimal128(38, 37), ["0." + "0" * 36 + "1", "-9." + "9" * 37]),
        (pa.decimal256(76, 0), ["9" * 76, "0"]),
    ],
)
async def test_decimals_have_plain_digits_at_any_depth(
    bench: Bench, kind: pa.DataType, given: list[str]
) -> None:
    column = pa.array(list(map(Decimal, given)), kind)
    assert await values(bench, parquet(column)) == given
    rows = (await converted(bench, parquet(column), "csv")).decode().splitlines()
    assert rows == ["v", *given]
    nested = pa.array([[{"d": Decimal(one)}] for one in given], pa.list_(pa.struct([("d", kind)])))
    assert await values(bench, parquet(nested)) == [[{"d": one}] for one in given]


async def test_bytes_are_base64(bench: Bench) -> None:
    for kind in (pa.binary(), pa.large_binary(), pa.binary(2), pa.binary_view()):
        column = pa.array([b"\x00\xff", None], kind)
        assert await values(bench, parquet(column)) == ["AP8=", None]
        nested = pa.array([[b"\x00\xff"]], pa.list_(kind))
        assert await values(bench, parquet(nested)) == [["AP8="]]


DAY = 86400
UTC_END = (datetime(9999, 12, 31, 23, 59, 59) - datetime(1970, 1, 1)) // timedelta(seconds=1)  # noqa: DTZ001 - without a zone


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (counts(2932896, 2932897, type=pa.date32()), ["9999-12-31", "10000-01-01"]),
        (counts(-719162, type=pa.date32()), [date.min.isoformat()]),
        (counts(0, DAY * 1000, type=pa.date64()), ["1970-01-01", "1970-01-02"]),
        (counts(0, DAY - 1, DAY, type=pa.time32("s")), ["00:00:00", "23:59:59", "24:00:00"]),
        (counts(1, DAY * 1000, type=pa.time32("ms")), ["00:00:00.001000", "24:00:00"]),
        (counts(DAY * 10**6 - 1, None, type=pa.time64("us")), ["23:59:59.999999", None]),
        (
            counts(1000, 1, DAY * 10**9, None, type=pa.time64("ns")),
            ["00:00:00.000001000", "00:00:00.000000001", "24:00:00.000000000", None],
        ),
        (counts(UTC_END, UTC_END + 1, type=pa.timestamp("s")),
         ["9999-12-31T23:59:59", "10000-01-01T00:00:00.000"]),
        (counts(1, type=pa.timestamp("ms", "UTC")), ["1970-01-01T00:00:00.001000Z"]),
        (counts(0, type=pa.timestamp("us", "+05:30")), ["1970-01-01T05:30:00+05:30"]),
        (counts(1, 0, type=pa.timestamp("ns", "Asia/Kolkata")),
         ["1970-01-01T05:30:00.000000001+05:30", "1970-01-01T05:30:00.000000000+05:30"]),
        (counts(2**63 - 1, type=pa.timestamp("ns")), ["2262-04-11T23:47:16.854775807"]),
    ],
)  # fmt: skip
async def test_dates_and_times(bench: Bench, column: pa.Array, wanted: list[Any]) -> None:
    assert await values(bench, parquet(column)) == wanted
    nested = pa.ListArray.from_arrays(list(range(len(column) + 1)), column)
    assert await values(bench, parquet(nested)) == [[one] for one in wanted]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
async def test_durations_have_one_form_in_all_formats(bench: Bench, unit: str) -> None:
    second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    column = counts(0, 93600 * second, -DAY * second, -93600 * second, None, type=pa.duration(unit))
    wanted = ["P0D", "P1DT7200S", "P-1D", "P-1DT-7200S", None]
    assert await values(bench, parquet(column)) == wanted
    rows = (await converted(bench, parquet(column), "csv")).decode().splitlines()
    assert rows == ["v", *wanted[:-1], ""]
    least = counts(-1, type=pa.duration(unit))
    digits = Decimal(-1) / second
    assert await values(bench, parquet(least)) == [f"PT{digits:f}S"]


async def test_maps_are_objects(bench: Bench) -> None:
    text = pa.array([[("a", 1), ("b", None)], [], None], pa.map_(pa.string(), pa.int32()))
    assert await values(bench, parquet(text)) == [{"a": 1, "b": None}, {}, None]
    rows = (await converted(bench, parquet(text), "csv")).decode().splitlines()
    assert rows == ["v", '"{""a"":1,""b"":null}"', "{}", ""]
    days = pa.array(
        [[(date(2026, 1, 2), Decimal("1.50"))]], pa.map_(pa.date32(), pa.decimal128(9, 2))
    )
    assert await values(bench, parquet(days)) == [{"2026-01-02": "1.50"}]
    numbers = pa.array(
        [[(7, [("x", 0.5)])]], pa.map_(pa.int8(), pa.map_(pa.string(), pa.float32()))
    )
    assert await values(bench, parquet(numbers)) == [{"7": {"x": Decimal("0.5")}}]


REFUSED = {
    "a date that has no text": parquet(counts(-(2**31), type=pa.date32())),
    "a moment that has no text": parquet(counts(2**63 - 1, type=pa.timestamp("us"))),
    "a time after the day": parquet(counts(DAY + 1, type=pa.time32("s"))),
    "a time before the day": parquet(counts(-1, type=pa.time64("us"))),
    "a key twice": parquet(pa.array([[("k", 1), ("k", 2)]], pa.map_(pa.string(), pa.int8()))),
    "a field twice": parquet(
        pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    ),
    "an unknown zone": parquet(counts(0, type=pa.timestamp("us", "Mars/Olympus"))),
    "text that is not UTF-8": parquet(
        pa.Array.from_buffers(
            pa.string(), 1, [None, pa.py_buffer(struct.pack("<2i", 0, 1)), pa.py_buffer(b"\xff")]
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("to", ["ndjson", "csv"])
@pytest.mark.parametrize("case", REFUSED)
async def test_what_has_no_value_is_refused_with_its_column(
    bench: Bench, case: str, to: str
) -> None:
    with pytest.raises(TaskError, match="the column 'v'") as caught:
        await converted(bench, REFUSED[case], to)
    assert (caught.value.type, caught.value.retryable) == ("invalid_file", False)


def int96(*moments: int) -> bytes:
    """Nanoseconds since 1970 as 96-bit timestamps."""
    column = counts(*moments, type=pa.timestamp("ns"))
    return parquet(column, use_deprecated_int96_timestamps=True)


async def test_96_bit_timestamps_keep_their_nanoseconds(bench: Bench, tmp_path: Path) -> None:
    data = int96(0, 1, -1, 1_700_000_000_123_456_789)
    wanted = [
        "1970-01-01T00:00:00.000000000",
        "1970-01-01T00:00:00.000000001",
        "1969-12-31T23:59:59.999999999",
        "2023-11-14T22:13:20.123456789",
    ]
    assert await values(bench, data) == wanted
    (tmp_path / "x.parquet").write_bytes(await converted(bench, data, "parquet"))
    read = pq.read_table(tmp_path / "x.parquet")["v"]
    assert read.cast(pa.int64()).to_pylist() == [0, 1, -1, 1_700_000_000_123_456_789]


async def test_96_bit_timestamps_that_fit_into_no_unit_are_refused(bench: Bench) -> None:
    far = parquet(
        counts(253402214400 * 10**6, type=pa.timestamp("us")), use_deprecated_int96_timestamps=True
    )
    assert await values(bench, far) == ["9999-12-31T00:00:00"]
    out = io.BytesIO()
    columns = {
        "fine": counts(1, type=pa.timestamp("ns")),
        "far": counts(253402214400 * 10**6, type=pa.timestamp("us")),
    }
    pq.write_table(pa.table(columns), out, use_deprecated_int96_timestamps=True)
    with pytest.raises(TaskError, match="96-bit timestamps") as caught:
        await converted(bench, out.getvalue(), "ndjson")
    assert (caught.value.type, caught.value.retryable) == ("invalid_file", False)


def test_types_that_parquet_does_not_have_never_reach_us() -> None:
    union = pa.UnionArray.from_dense(
        pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])]
    )
    ends = pa.array([1], pa.int32())
    columns = [
        union,
        pa.RunEndEncodedArray.from_arrays(ends, pa.array(["x"])),
        pa.nulls(1, pa.month_day_nano_interval()),
    ]
    for column in columns:
        with pytest.raises(pa.ArrowNotImplementedError):
            parquet(column)
