"""The queue, with a clock that the test turns; after each test every law of the queue must hold."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tandem_shared.files.store import FileStore, open_store
from tests.shared.queue.model.laws import broken
from tests.shared.queue.model.shard import Shard


@pytest.fixture(params=["file", "memory", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty store, of each kind."""
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
    """An empty shard at noon, where ticks have gone on for long enough that no grace holds."""
    made = Shard(redis)
    await made.turn(0)
    await made.silence()
    yield made
    left = await made.snapshot()
    await made.queue.close()
    assert not broken(left)
