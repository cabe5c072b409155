"""Systems for the doctor, with each kind of ledger or with SQLite alone."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tandem_shared.files.store import FileStore, open_store
from tests.shared.doctor.system import System, open_system


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileStore]:
    async with open_store(f"file://{tmp_path}/store") as store:
        yield store


@pytest.fixture
async def ledgered(redis: Redis, any_ledger_url: str, store: FileStore) -> AsyncIterator[System]:
    """With each kind of ledger."""
    async with open_system(redis, any_ledger_url, store) as system:
        yield system


@pytest.fixture
async def system(redis: Redis, ledger_url: str, store: FileStore) -> AsyncIterator[System]:
    async with open_system(redis, ledger_url, store) as system:
        yield system
