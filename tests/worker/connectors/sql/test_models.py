"""Tortoise models in your own tasks: the example in the documentation, on both databases."""

import asyncio
import importlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tortoise.backends.base.executor import EXECUTOR_CACHE
from tortoise.exceptions import BaseORMException

from tandem_shared.errors import Misconfigured
from tandem_shared.settings import Settings
from tandem_worker.connectors.sql.connections import open_sql
from tandem_worker.errors import Permanent
from tests.worker.bench import Bench, open_bench

TABLES = (
    "CREATE TABLE item (name text PRIMARY KEY, amount integer NOT NULL)",
    (
        "CREATE TABLE sale (job text PRIMARY KEY, item_id text NOT NULL REFERENCES item,"
        " amount integer NOT NULL)"
    ),
    "INSERT INTO item VALUES ('cup', 10), ('pot', 1)",
)


EXAMPLES = Path(__file__).parents[4] / "docs" / "examples"


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(EXAMPLES)
    # Tortoise caches statements by the connection's name, and here one name has two databases.
    EXECUTOR_CACHE.clear()
    return importlib.import_module("shop")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/shop.db"
    return str(request.getfixturevalue("postgres"))


@pytest.fixture
async def tables(url: str) -> None:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite://"))) as database, database:
            for text in TABLES:
                database.execute(text)
    else:
        server = await asyncpg.connect(url)
        for text in TABLES:
            await server.execute(text)
        await server.close()


@pytest.fixture
async def bench(url: str, shop: Any, tables: None, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, sql={"shop": f"{url}?mode=rw&models=shop"}) as opened:
        yield opened


async def test_models_work_in_many_jobs_at_the_same_time(bench: Bench, shop: Any) -> None:
    left = await asyncio.gather(
        *(bench.run(shop.sell, {"item": "cup", "amount": 2}, id=f"job{n}") for n in range(4))
    )
    assert sorted(left) == [2, 4, 6, 8]
    assert await bench.run(shop.sell, {"item": "cup", "amount": 2}, id="job0") == 2
    with pytest.raises(Permanent, match="pot"):
        await bench.run(shop.sell, {"item": "pot", "amount": 2}, id="too many")
    await bench.run(shop.sell, {"item": "pot"}, id="one")
    assert await bench.run(shop.report, {}) == 9
    assert bench.recorder.items == [{"item": "cup", "sold": 8}, {"item": "pot", "sold": 1}]


async def test_models_of_a_read_only_connection_cannot_write(
    url: str, shop: Any, tables: None, tmp_path: Path
) -> None:
    async with open_bench(tmp_path, sql={"shop": f"{url}?models=shop"}) as bench:
        assert await bench.run(shop.report, {}) == 0
        with pytest.raises(BaseORMException, match=r"read.?only"):
            await bench.run(shop.sell, {"item": "cup"})


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("no_such_module", "ModuleNotFoundError"),
        ("tandem_worker.connectors.sql.statements.rows", "no Tortoise model"),
        ("shop", "already"),
    ],
)
async def test_a_module_without_models_stops_the_start(
    tmp_path: Path, shop: Any, module: str, words: str
) -> None:
    urls = {
        "shop": f"sqlite://{tmp_path}/a.db?models=shop",
        "two": f"sqlite://{tmp_path}/b.db?models={module}",
    }
    with pytest.raises(Misconfigured, match=f"^TANDEM_SQL__TWO: models={module}: .*{words}"):
        async with open_sql(Settings(sql=urls)):
            pass
