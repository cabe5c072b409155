"""Item 11: built-in tasks compared with hand-written code on the bare library, in one process."""

import csv
import hashlib
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import msgspec

from bench import gather
from bench.figures import OURS, Figure
from bench.processes import MeasurementFailed
from tandem_shared.files.uploads import save_upload
from tandem_worker.tasks.file.hash import hash_file as file_hash_file
from tandem_worker.tasks.sql.export import export as sql_export
from tandem_worker.tasks.sql.query import query as sql_query
from tandem_worker.testing import Bench, Recorder, open_bench, run

COLUMNS = ("id", "customer", "amount", "note")
SELECT = "SELECT id, customer, amount, note FROM sales"
PAYLOAD = {"connection": "bench", "sql": SELECT}
FILE_BYTES_PER_SECOND = 64 << 20  # size of the file, for each second of measurement
ROWS_PER_SECOND = 50_000  # of the table, for each second of measurement


class Counter(Recorder):
    """Counts the items and drops them, so that only the task is measured."""

    count = 0

    async def output(self, _item: bytes) -> None:
        self.count += 1


def create_table(path: Path, rows: int) -> None:
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
    """The seconds it took, and its result."""
    start = perf_counter()
    result = await work
    return perf_counter() - start, result


async def databases(root: Path, seconds: float) -> AsyncIterator[Figure]:
    path = root / "sales.db"
    rows = int(ROWS_PER_SECOND * seconds)
    create_table(path, rows)
    bare_query(path)  # reads the file into the page cache
    measurements = (
        ("sql.query", bare_query, run_query),
        ("sql.export to CSV", lambda path: bare_export(path, root / "export.csv"), run_export),
    )
    for what, bare, ours in measurements:
        start = perf_counter()
        bare_count = bare(path)
        yield Figure(what, "rows/s", "sqlite3 by hand", bare_count / (perf_counter() - start))
        sql = {"bench": f"sqlite://{path}"}
        async with open_bench(sql=sql, store_url=(root / "files").as_uri()) as resources:
            spent, count = await timed(ours(resources))
        if count != rows or bare_count != rows:
            raise MeasurementFailed(f"{what}: returned {count} of {rows} rows")
        yield Figure(what, "rows/s", OURS, rows / spent)


async def run_query(resources: Bench) -> int:
    """The number of rows that `sql.query` has streamed."""
    sink = Counter()
    await run(sql_query, PAYLOAD, resources=resources, sink=sink)
    return sink.count


async def run_export(resources: Bench) -> int:
    """The number of rows that `sql.export` has written."""
    result = await run(sql_export, {**PAYLOAD, "format": "csv"}, resources=resources)
    count: int = result["row_count"]
    return count


async def hashes(root: Path, seconds: float) -> AsyncIterator[Figure]:
    path = root / "large"
    blocks = int(FILE_BYTES_PER_SECOND * seconds) >> 20
    size = blocks << 20
    block = os.urandom(1 << 20)
    path.write_bytes(block * blocks)
    start = perf_counter()
    with path.open("rb") as file:
        expected = hashlib.file_digest(file, "sha256").hexdigest()
    yield Figure("file.hash", "MB/s", "hashlib by hand", size / 1e6 / (perf_counter() - start))

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(blocks):
            yield block

    async with open_bench(store_url=(root / "files").as_uri()) as resources:
        saved = await save_upload(
            resources.files, pieces(), tenant="default", now=time.time, keep=86400
        )
        spent, result = await timed(
            run(file_hash_file, {"source": {"file": saved.id}}, resources=resources)
        )
    if result["sha256"] != expected:
        raise MeasurementFailed("file.hash: wrong hash")
    yield Figure("file.hash", "MB/s", OURS, size / 1e6 / spent)


async def measure(seconds: float) -> AsyncIterator[Figure]:
    """Each task and its bare counterpart."""
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
    for name, times in spans.items():
        rate = count / sorted(times)[len(times) // 2]
        yield Figure("http.gather, 100 concurrent requests", "requests/s", names[name], rate)
