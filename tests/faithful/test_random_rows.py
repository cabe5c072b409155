"""Random rows of all of PostgreSQL's types through export and import, as psql compares them.

`make test` tries two hundred; TANDEM_TEST_ROWS sets another number, TANDEM_TEST_SEED other rows.
"""

import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tandem_worker.tasks.sql.export import export as sql_export
from tandem_worker.tasks.sql.imports import import_ as sql_import
from tests.faithful import random_rows
from tests.faithful.postgres_types import SETUP
from tests.faithful.psql import odd_role, psql
from tests.worker.bench import Bench, open_bench

ROWS = int(os.environ.get("TANDEM_TEST_ROWS", "200"))
SEED = int(os.environ.get("TANDEM_TEST_SEED", "1"))
MAX_PORTION_ROWS = 2500
ZONES = ("America/New_York", "Asia/Kathmandu", "Pacific/Apia")  # of the worker, in turns
DEADLINE_SECONDS = 600.0


@pytest.fixture
async def bench(postgres: str, tmp_path: Path) -> AsyncIterator[Bench]:
    psql(postgres, SETUP)
    async with open_bench(tmp_path, sql={"pg": f"{odd_role(postgres)}?mode=rw"}) as opened:
        yield opened


@pytest.fixture
def columns(bench: Bench, postgres: str) -> dict[str, str]:
    """Column name → type; after `bench`, whose types some of them use."""
    return random_rows.make_types(postgres)


async def test_random_rows_are_the_same_after_each_format(
    bench: Bench, postgres: str, columns: dict[str, str]
) -> None:
    rows = min(MAX_PORTION_ROWS, -(-ROWS // len(ZONES)))
    for portion in range(-(-ROWS // rows)):
        random_rows.fill(postgres, columns, rows, SEED + portion)
        for format in ("csv", "ndjson", "parquet"):
            with _local_zone(ZONES[portion % len(ZONES)]):
                assert await _copied(bench, postgres, columns, format) == rows
            found = random_rows.differences(postgres, columns, spelled=format == "csv")
            assert not found, (format, SEED + portion, found)


@contextmanager
def _local_zone(name: str) -> Iterator[None]:
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TZ", name)
            time.tzset()
            yield
    finally:
        time.tzset()


async def _copied(bench: Bench, url: str, columns: dict[str, str], format: str) -> int:
    """The number of rows that went from `here` through a file into `there`."""
    psql(url, "TRUNCATE there")
    job: dict[str, Any] = {"id": secrets.token_hex(8), "deadline": time.time() + DEADLINE_SECONDS}
    # As the export itself advises for times that Parquet's own types cannot hold.
    far = "::text" if format == "parquet" else ""
    chosen = (
        f"{name}{far} AS {name}" if name in random_rows.far(columns) else name for name in columns
    )
    payload = {"connection": "pg", "sql": f"SELECT {', '.join(chosen)} FROM here", "format": format}
    await bench.run(sql_export, payload, stamp=7, **job)
    name = f"export.{format}"
    data = await bench.resources.files.load(f"jobs/{job['id']}/7/{name}", 1 << 32)
    source = {"file": await bench.upload(name, data, "application/octet-stream")}
    target = {"connection": "pg", "table": "there", "source": source}
    return int((await bench.run(sql_import, target, **job))["row_count"])


async def test_a_changed_value_is_noticed(postgres: str, columns: dict[str, str]) -> None:
    random_rows.fill(postgres, columns, 20, SEED)
    psql(postgres, "INSERT INTO there SELECT * FROM here")
    assert random_rows.differences(postgres, columns, spelled=True) == []
    name = next(name for name, type_ in columns.items() if type_ == "float8")
    psql(postgres, f"UPDATE there SET {name} = 0.1::float8 + 0.2::float8 WHERE ctid = '(0,1)'")
    found = random_rows.differences(postgres, columns, spelled=True)
    assert [row[:3] for row in found] == [[name, "float8", "here"], [name, "float8", "there"]]
    assert found[1][3] == "0.30000000000000004"
