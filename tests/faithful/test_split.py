"""file.split and file.concat cut where file.convert sees rows: the parts convert to its rows."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tandem_worker.errors import TaskError
from tandem_worker.tasks.file.convert import convert as file_convert
from tandem_worker.tasks.file.split import concat as file_concat
from tandem_worker.tasks.file.split import split as file_split
from tests.worker.bench import Bench, open_bench

MARK = b"\xef\xbb\xbf"
calls = itertools.count()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as opened:
        yield opened


async def run(bench: Bench, task: Any, payload: Any) -> Any:
    return await bench.run(task, payload, id=f"J{next(calls)}")


async def uploaded(bench: Bench, data: bytes) -> dict[str, str]:
    return {"file": await bench.upload("x.csv", data, "text/csv")}


async def fetched(bench: Bench, ref: dict[str, str]) -> bytes:
    job, _, name = ref["file"].partition("/")
    return await bench.resources.files.load(f"jobs/{job}/0/{name}", 1 << 30)


async def rows(bench: Bench, data: bytes) -> list[Any]:
    payload = {"source": await uploaded(bench, data), "to": "ndjson"}
    made = await run(bench, file_convert, payload)
    return [msgspec.json.decode(line) for line in (await fetched(bench, made["file"])).splitlines()]


TABLES = {
    "line feeds": (b"item,amount\ncup,1\nmug,2\n", 2),
    "CR alone": (b"item,amount\rcup,1\rmug,2\r", 2),
    "CR LF, no end": (b"item,amount\r\ncup,1\r\nmug,2", 2),
    "sep=": (b"sep=:\nitem:amount\ncup:1\nmug:2\n", 2),
    "sep= in a marked file": (MARK + b"sep=;\r\nitem;amount\r\ncup;1\r\nmug;2\r\n", 2),
    "marked, with a quoted header": (MARK + b'"the\nitem",amount\ncup,1\nmug,2\n', 2),
    "semicolons": (b'item;amount\n"a\nb";1\nmug;2\n', 2),
    "tabs": (b'item\tamount\n"a\nb"\t1\nmug\t2\n', 2),
    "empty first lines": (b"\n\r\n,\nitem,amount\ncup,1\nmug,2\n", 2),
    "empty lines between": (b"item,amount\n\ncup,1\n\n\nmug,2\n\n", 2),
    "null and empty": (b'item,amount\n,\n"",1\n', 2),
    "nulls of one column": (b"item\n\ncup\n\n", 3),
    "a column without a name": (b'""\n1\n2\n', 2),
}


@pytest.mark.parametrize("name", TABLES)
async def test_each_part_has_one_row_and_all_of_them_are_the_table(bench: Bench, name: str) -> None:
    data, count = TABLES[name]
    payload = {"source": await uploaded(bench, data), "rows": 1, "header": True}
    parts = [await fetched(bench, ref) for ref in (await run(bench, file_split, payload))["files"]]
    found = [await rows(bench, part) for part in parts]
    assert [len(part) for part in found[:count]] == [1] * count
    # A last part may have empty lines only.
    assert [row for part in found for row in part] == await rows(bench, data)
    sources = [await uploaded(bench, part) for part in parts]
    joined = await run(bench, file_concat, {"sources": sources, "header": True})
    assert await rows(bench, await fetched(bench, joined["file"])) == await rows(bench, data)


@pytest.mark.parametrize("data", [b'a,b\n1,"x\n2,y\n', b'a,b\n1,"5" disk"\n'])
async def test_broken_quotes_are_refused_with_their_line(bench: Bench, data: bytes) -> None:
    with pytest.raises(TaskError, match="line 2") as caught:
        await run(bench, file_split, {"source": await uploaded(bench, data), "rows": 1})
    assert (caught.value.type, caught.value.retryable) == ("invalid_file", False)


async def test_a_header_without_its_line_end_stays_a_line(bench: Bench) -> None:
    sources = [
        await uploaded(bench, data) for data in (b"a,b", b"a,b\n1,2", b"\nsep=,\na,b\n3,4\n")
    ]
    made = await run(bench, file_concat, {"sources": sources, "header": True})
    assert await fetched(bench, made["file"]) == b"a,b\n1,2\n3,4\n"


async def test_another_delimiter_is_another_header(bench: Bench) -> None:
    sources = [await uploaded(bench, data) for data in (b"a,b\n1,2\n", b"a;b\n3;4\n")]
    with pytest.raises(TaskError) as caught:
        await run(bench, file_concat, {"sources": sources, "header": True})
    assert (caught.value.type, caught.value.retryable) == ("header_mismatch", False)
