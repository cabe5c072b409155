"""Item 11: built-in tasks beside what one would write by hand with the bare library, in one process."""

import csv
import hashlib
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import msgspec

from bench import gather
from bench.figures import OURS, Figure
from bench.processes import Broken
from tandem_shared.files.uploads import save_upload
from tandem_worker.tasks.file.hash import hash_file as file_hash_file
from tandem_worker.tasks.sql.export import export as sql_export
from tandem_worker.tasks.sql.query import query as sql_query
from tandem_worker.testing import Recorder, open_bench, run

COLUMNS = ("id", "customer", "amount", "note")
SELECT = "SELECT id, customer, amount, note FROM sales"
BYTES = 64 << 20  # of the file, for each second
ROWS = 50_000  # of the table, likewise


class Counter(Recorder):
    """Keeps nothing: what is measured is the task."""

    count = 0

    async def output(self, _item: bytes) -> None:
        self.count += 1


def table(path: Path, rows: int) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE sales (id INTEGER PRIMARY KEY, customer INTEGER, amount REAL, note TEXT)"
        )
        values = (
            (number, number % 4711, number / 7, f"delivered, no. {number}")
            for number in range(rows)
        )
        connection.executemany("INSERT INTO sales VALUES (?, ?, ?, ?)", values)
    connection.close()


def bare_query(path: Path) -> int:
    connection, count = sqlite3.connect(path), 0
    for row in connection.execute(SELECT):
        msgspec.json.encode(dict(zip(COLUMNS, row, strict=True)))
        count += 1
    connection.close()
    return count


def bare_export(path: Path, to: Path) -> int:
    connection, count = sqlite3.connect(path), 0
    with to.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(COLUMNS)
        for row in connection.execute(SELECT):
            writer.writerow(row)
            count += 1
    connection.close()
    return count


async def timed(work: Awaitable[Any]) -> tuple[float, Any]:
    began = perf_counter()
    answer = await work
    return perf_counter() - began, answer


async def databases(root: Path, seconds: float) -> AsyncIterator[Figure]:
    path, rows = root / "sales.db", int(ROWS * seconds)
    table(path, rows)
    settings = {"sql": {"bench": f"sqlite://{path}"}, "store_url": (root / "files").as_uri()}
    asked = {"connection": "bench", "sql": SELECT}
    bare_query(path)  # the pages are in memory
    for what, work in (
        ("sql.query", bare_query),
        ("sql.export to CSV", lambda path: bare_export(path, root / "x")),
    ):
        began = perf_counter()
        count = work(path)
        yield Figure(what, "rows/s", "sqlite3 by hand", count / (perf_counter() - began))
        async with open_bench(**settings) as resources:
            if what == "sql.query":
                sink = Counter()
                spent, answer = await timed(run(sql_query, asked, resources=resources, sink=sink))
                answer["row_count"] = sink.count
            else:
                spent, answer = await timed(
                    run(sql_export, {**asked, "format": "csv"}, resources=resources)
                )
        if answer["row_count"] != rows or count != rows:
            raise Broken(f"{what}: {answer['row_count']} of {rows} rows")
        yield Figure(what, "rows/s", OURS, rows / spent)


async def hashes(root: Path, seconds: float) -> AsyncIterator[Figure]:
    path, size = root / "large", int(BYTES * seconds)
    block = os.urandom(1 << 20)
    path.write_bytes(block * (size >> 20))
    size = path.stat().st_size
    began = perf_counter()
    with path.open("rb") as opened:
        wanted = hashlib.file_digest(opened, "sha256").hexdigest()
    yield Figure("file.hash", "MB/s", "hashlib by hand", size / 1e6 / (perf_counter() - began))

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size >> 20):
            yield block

    async with open_bench(store_url=(root / "files").as_uri()) as resources:
        saved = await save_upload(resources.files, pieces(), tenant="default", keep=86400)
        spent, answer = await timed(
            run(file_hash_file, {"source": {"file": saved.id}}, resources=resources)
        )
    if answer["sha256"] != wanted:
        raise Broken("file.hash: another hash")
    yield Figure("file.hash", "MB/s", OURS, size / 1e6 / spent)


async def measure(seconds: float) -> AsyncIterator[Figure]:
    """Everything beside its bare tool."""
    with TemporaryDirectory(prefix="bench-") as data:
        root = Path(data)
        async for figure in databases(root, seconds):
            yield figure
        async for figure in hashes(root, seconds):
            yield figure
    count = 1000
    spans = await gather.compare(count, 100, rounds=max(1, int(seconds / 2)))
    names = {
        "bare aiohttp": "aiohttp by hand",
        "http.gather": OURS,
        "POST to result": "Tandem, POST to result",
    }
    for name, seconds_ in spans.items():
        yield Figure(
            "http.gather, 100 at once",
            "requests/s",
            names[name],
            count / sorted(seconds_)[len(seconds_) // 2],
        )
