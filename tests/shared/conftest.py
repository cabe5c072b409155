"""A queue whose clock the test sets, with its laws checked after each test; and file stores."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tandem_shared.files.store import FileStore, open_store
from tests.shared.queue.model.laws import broken
from tests.shared.queue.model.shard import Shard


@pytest.fixture(params=["file", "memory", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store of each kind."""
    if request.param == "s3":
        url: str = request.getfixturevalue("s3_url")
        return url
    return f"file://{tmp_path}/store" if request.param == "file" else "memory://"


@pytest.fixture
async def any_store(store_url: str) -> AsyncIterator[FileStore]:
    async with open_store(store_url) as store:
        yield store


@pytest.fixture
async def shard(redis: Redis) -> AsyncIterator[Shard]:
    """An empty shard at noon, ticked for long enough that no grace period applies."""
    made = Shard(redis)
    await made.turn(0)
    await made.silence()
    yield made
    left = await made.snapshot()
    await made.queue.close()
    assert not broken(left)
