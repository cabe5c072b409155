"""`file.concat` and `file.split`, compared with the system's `split` and Python's csv."""

import csv
import gzip
import io
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from pydantic import ValidationError

from tandem_worker.errors import TaskError
from tandem_worker.tables.text import delimiter_of
from tandem_worker.task import task_of
from tandem_worker.tasks.file.split import concat, split
from tests.worker.archives.test_archives import fetched, run
from tests.worker.bench import Bench, open_bench

CSV = "text/csv"
HARD = 'name;note\n"a;""b""";"two\nlines"\n\nplain;x"y\n"";"\r\n"\nlast;one'


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as bench:
        yield bench


async def joined(bench: Bench, *sources: bytes, **options: Any) -> bytes:
    given = [
        {"file": await bench.upload(f"{number}.csv", data, CSV)}
        for number, data in enumerate(sources)
    ]
    result = await bench.run(concat, {"sources": given, **options})
    assert (result["file"]["name"], result["file"]["content_type"]) == ("0.csv", CSV)
    return await fetched(bench, result["file"])


async def parts(bench: Bench, data: bytes, name: str = "rows.csv", **options: Any) -> list[bytes]:
    source = await bench.upload(name, data, "application/octet-stream")
    result = await bench.run(split, {"source": {"file": source}, **options})
    stem = "rows" if name.startswith("rows.") else name
    assert [ref["name"].split("-")[0] for ref in result["files"]] == [stem] * len(result["files"])
    return [await fetched(bench, ref) for ref in result["files"]]


def rows(data: bytes) -> list[list[str]]:
    return [row for row in csv.reader(io.StringIO(data.decode(), newline=""), delimiter=";") if row]


async def test_files_are_joined_byte_by_byte(bench: Bench) -> None:
    data = [
        random.Random(seed).randbytes(size) for seed, size in enumerate((0, 1, 700_000, 0, 2 << 20))
    ]
    assert await joined(bench, *data) == b"".join(data)
    assert bench.recorder.progressed[-1] == {
        "current": sum(map(len, data)),
        "total": sum(map(len, data)),
        "message": None,
    }


async def test_a_common_header_is_kept_once(bench: Bench) -> None:
    bom = b"\xef\xbb\xbf"
    assert (
        await joined(bench, b"a,b\n1,2", b"", bom + b"a,b\r\n3,4\r\n", b"a,b", header=True)
        == b"a,b\n1,2\n3,4\r\n"
    )
    quoted = b'"a\nb";c\n1;2\n'
    assert rows(await joined(bench, quoted, quoted, header=True)) == [
        ["a\nb", "c"],
        ["1", "2"],
        ["1", "2"],
    ]
    assert await joined(bench, bom + b"a\n1\n", b"a\n2\n", header=True) == bom + b"a\n1\n2\n"
    with pytest.raises(TaskError) as error:
        await joined(bench, b"a,b\n1,2\n", b"b,a\n1,2\n", header=True)
    assert (error.value.type, error.value.retryable) == ("header_mismatch", False)


@pytest.mark.parametrize("size", [1, 1000, 4096, 100_000, 100_001])
async def test_parts_of_bytes_equal_those_of_split(bench: Bench, tmp_path: Path, size: int) -> None:
    data = random.Random(5).randbytes(50 if size == 1 else 100_000)
    (tmp_path / "x").write_bytes(data)
    run("split", "-b", str(size), "-d", "-a", "5", tmp_path / "x", f"{tmp_path}/part-")
    wanted = [path.read_bytes() for path in sorted(tmp_path.glob("part-*"))]
    assert await parts(bench, data, bytes=size) == wanted


async def test_parts_of_lines_equal_those_of_split(bench: Bench, tmp_path: Path) -> None:
    data = b"".join(
        msgspec.json.encode({"n": n, "text": 'a "quote'[: n % 9]}) + b"\n" for n in range(10_000)
    )
    (tmp_path / "x").write_bytes(data)
    run("split", "-l", "3000", tmp_path / "x", f"{tmp_path}/part-")
    wanted = [path.read_bytes() for path in sorted(tmp_path.glob("part-*"))]
    assert await parts(bench, data, "rows.ndjson", rows=3000) == wanted
    assert await parts(bench, gzip.compress(data, mtime=0), "rows.ndjson.gz", rows=3000) == wanted
    assert await parts(bench, data, "data", rows=3000, format="ndjson") == wanted


async def test_records_are_never_cut(bench: Bench) -> None:
    data = HARD.encode()
    all_rows = rows(data)
    assert len(all_rows) == 5
    found = await parts(bench, data, rows=2)
    assert b"".join(found) == data
    assert [rows(part) for part in found] == [all_rows[0:2], all_rows[2:4], all_rows[4:]]
    found = await parts(bench, data, rows=3, header=True)
    assert [rows(part) for part in found] == [all_rows[:4], [all_rows[0], all_rows[4]]]
    found = await parts(bench, data, bytes=40, header=True)
    assert all(len(part) <= 40 for part in found)
    assert [row for part in found for row in rows(part)[1:]] == all_rows[1:]
    assert {tuple(rows(part)[0]) for part in found} == {tuple(all_rows[0])}


async def test_an_empty_file_has_one_part(bench: Bench) -> None:
    assert await parts(bench, b"", bytes=5) == [b""]
    assert await parts(bench, b"", rows=5) == [b""]
    assert await parts(bench, b"a,b\n", rows=5, header=True) == [b"a,b\n"]


@pytest.mark.parametrize(
    ("data", "options", "type"),
    [
        (b"x" * 10_001, {"bytes": 1}, "too_large"),
        (b"head\nlong row\n", {"bytes": 8, "header": True}, "too_large"),
        (b"x" * ((16 << 20) + 1), {"rows": 1}, "too_large"),
        (b'"' + (b"x" * (9 << 20) + b"\n") * 2, {"rows": 1}, "invalid_file"),
        ("a,b\n".encode("utf-16"), {"rows": 1}, "invalid_file"),
        (gzip.compress(b"a,b\n" * 1000, mtime=0)[:-9], {"rows": 1000}, "invalid_file"),
    ],
)
async def test_sources_that_cannot_be_split_fail_permanently(
    bench: Bench, data: bytes, options: dict[str, Any], type: str
) -> None:
    with pytest.raises(TaskError) as error:
        await parts(bench, data, **options)
    assert (error.value.type, error.value.retryable) == (type, False)


def test_the_delimiter_is_detected() -> None:
    samples = {
        "a,b\n1,2\n": ",",
        "a;b\n1,5;2\n": ";",
        "a\tb\n": "\t",
        "a|b|c\n1|2|3\n": "|",
        "one\ntwo\n": ",",
        "": ",",
    }
    samples['"a,b,c";d\n"x,y";z\n'] = ";"
    assert {sample: delimiter_of(sample) for sample in samples} == samples


def test_either_rows_or_bytes_must_be_given() -> None:
    task = task_of(split)
    for given, right in (
        ({"rows": 1}, True),
        ({"bytes": 1, "rows": None}, True),
        ({}, False),
        ({"rows": None}, False),
        ({"rows": 1, "bytes": 1}, False),
        ({"rows": 0}, False),
        ({"bytes": 1, "lines": 1}, False),
    ):
        payload = {"source": {"file": "x"}, **given}
        assert jsonschema_rs.is_valid(task.entry.payload_schema, payload) is right
        try:
            task.decode(msgspec.json.encode(payload))
        except ValidationError:
            assert not right
        else:
            assert right
