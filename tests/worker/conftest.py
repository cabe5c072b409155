"""A client of the queue on an empty Redis."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tandem_shared.files.store import FileStore, open_store
from tests.worker.connectors.sql.databases import Database
from tests.worker.recorded import OutputProbe, claimed
from tests.worker.workers import Client, open_client


@pytest.fixture
async def client(redis: Redis, redis_url: str) -> AsyncIterator[Client]:
    async with open_client(redis_url) as client:
        yield client


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileStore]:
    async with open_store(f"file://{tmp_path}/store") as store:
        yield store


@pytest.fixture
async def probe(client: Client, store: FileStore) -> OutputProbe:
    """The output of a running job."""
    return OutputProbe(client, await claimed(client), store)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return Database(f"sqlite://{tmp_path}/shop.db")
    return Database(str(request.getfixturevalue("postgres")))
