"""Files of every format that the tasks read, made by others' writers, and damage to them."""

import csv
import gzip
import io
import json
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.values import LEAVES, NUMBERS, text, value

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["TABLES", "Material", "damaged", "material", "zstd"]


class Material(NamedTuple):
    """A file for a job; `whole` if it is as its writer made it."""

    name: str
    data: bytes
    whole: bool


def _rows(random: Random) -> list[dict[str, Any]]:
    names = random.sample(["item", "amount", "at", "note", "ä b"], random.randrange(1, 5))
    names += random.choices(["", text(random)], k=random.random() < 0.1)
    pool = random.choice((LEAVES, NUMBERS, ["cup", "mug", None]))
    return [{name: random.choice(pool) for name in names} for _ in range(random.randrange(9))]


def csv_file(random: Random) -> bytes:
    out = io.StringIO()
    rows = _rows(random)
    quoting: Any = random.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    end = random.choice(("\n", "\r\n", "\r"))
    writer = csv.writer(out, delimiter=random.choice(",;\t|"), quoting=quoting, lineterminator=end)
    writer.writerow(rows[0] if rows else ["item"])
    writer.writerows([str(cell) for cell in row.values()] for row in rows)
    return out.getvalue().encode(random.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16")))


def ndjson_file(random: Random) -> bytes:
    lines = (json.dumps(value(random) if random.random() < 0.1 else row) for row in _rows(random))
    return "".join(f"{line}\n" for line in lines).encode()


def json_file(random: Random) -> bytes:
    indent = random.choice((None, 2))
    return json.dumps(
        value(random) if random.random() < 0.2 else _rows(random), indent=indent
    ).encode()


_COLUMNS: list[tuple[pa.DataType, list[Any]]] = [
    (pa.int64(), [0, -(2**63), 2**63 - 1]),
    (pa.uint64(), [2**64 - 1]),
    (pa.float32(), [0.1, float("nan"), float("inf"), -0.0]),
    (pa.float64(), [0.1, 1e300, 5e-324]),
    (pa.float16(), [0.5]),
    (pa.string(), ["", "é", "\0"]),
    (pa.large_string(), ["x"]),
    (pa.binary(), [b"", b"\x00\xff"]),
    (pa.bool_(), [True, False]),
    (pa.date32(), [date(1, 1, 1), date(9999, 12, 31), 2932897, -(2**31)]),
    (pa.timestamp("ns"), [0, 1, -(2**63) + 1, 2**63 - 1]),
    (pa.timestamp("us", "UTC"), [datetime(2026, 1, 31, tzinfo=UTC), 253402300800000000]),
    (pa.timestamp("s"), [2**40, -(2**40)]),
    (pa.time64("ns"), [0, 1, 86399999999999]),
    (pa.time64("us"), [time(23, 59, 59, 999999)]),
    (pa.duration("ns"), [1, -1, 2**62]),
    (pa.decimal128(38, 18), [Decimal(0), Decimal("-0.000000000000000001")]),
    (pa.decimal256(76, 2), [Decimal("1" * 70)]),
    (pa.list_(pa.int32()), [[], [1, None]]),
    (pa.struct([("a", pa.int32()), ("b", pa.list_(pa.int8()))]), [{"a": 1, "b": [None]}]),
    (pa.map_(pa.string(), pa.int32()), [[("k", 1)], []]),
    (pa.dictionary(pa.int32(), pa.string()), ["x"]),
    (pa.null(), []),
]  # fmt: skip


def parquet_file(random: Random) -> bytes:
    columns = {}
    count = random.randrange(5)
    for number, (type_, pool) in enumerate(random.sample(_COLUMNS, random.randrange(1, 5))):
        cells = [random.choice([*pool, None]) for _ in range(count)]
        columns[f"c{number}"] = pa.array(cells, type_)
    out = io.BytesIO()
    compression = random.choice(("none", "snappy", "gzip", "zstd"))
    pq.write_table(pa.table(columns), out, compression=compression)
    return out.getvalue()


def _names(random: Random) -> list[str]:
    names = [
        "a.txt",
        "folder/b.csv",
        "日.txt",
        "x" * 90,
        "folder/sub/",
        "a b",
        "../up",
        "/etc/x",
        "C:\\x",
    ]
    return random.sample(names, random.randrange(4))


def zip_file(random: Random) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in _names(random):
            method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            archive.writestr(zipfile.ZipInfo(name), text(random).encode(), method)
    return out.getvalue()


def tar_file(random: Random) -> bytes:
    out = io.BytesIO()
    style = random.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=out, mode="w", format=style, encoding="utf-8") as archive:
        for name in _names(random):
            entry = tarfile.TarInfo(name)
            entry.type = random.choice((tarfile.REGTYPE,) * 5 + (tarfile.DIRTYPE, tarfile.SYMTYPE))
            data = text(random).encode() if entry.isreg() else b""
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


WRITERS: dict[str, Callable[[Random], bytes]] = {
    "csv": csv_file,
    "tsv": csv_file,
    "ndjson": ndjson_file,
    "json": json_file,
    "parquet": parquet_file,
    "zip": zip_file,
    "tar": tar_file,
    "bin": lambda random: random.randbytes(random.randrange(200)),
}
TABLES = ("csv", "tsv", "ndjson", "json", "parquet")


def damaged(random: Random, data: bytes) -> bytes:
    """The data with a few bytes changed, cut off, doubled or put in."""
    for _ in range(random.randrange(1, 4)):
        at, size = random.randrange(len(data) + 1), random.choice((1, 1, 4, 50))
        match random.randrange(5):
            case 0:
                data = data[:at] + random.randbytes(size) + data[at + size :]
            case 1:
                data = data[:at]
            case 2:
                data = data[:at] + data[at : at + size] * 2 + data[at + size :]
            case 3:
                data = (
                    data[:at] + random.choice((b'"', b"\n", b"\0", b"\xff", b"}", b",")) + data[at:]
                )
            case 4:
                data = data[:at] + data[at + size :]
    return data


def material(random: Random, *kinds: str) -> Material:
    """A file of one of these kinds: whole, damaged, compressed, or under another name."""
    kind = random.choice(kinds or sorted(WRITERS))
    data, whole = WRITERS[kind](random), random.random() < 0.4
    if not whole and random.random() < 0.5:
        data = damaged(random, data)
    name = f"file.{kind}"
    packing = random.choice(("", "", "", ".gz", ".zst"))
    if packing:
        data = gzip.compress(data) if packing == ".gz" else zstd.compress(data)
        name += packing
    if not whole and random.random() < 0.5:
        data = damaged(random, data)
    if random.random() < 0.1:
        name = random.choice(("file", f"file.{random.choice(sorted(WRITERS))}", "x.deflate"))
    return Material(name, zlib.compress(data) if name == "x.deflate" else data, whole)
