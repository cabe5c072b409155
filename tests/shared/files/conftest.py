"""A store on a directory, for tests that look at its files."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tandem_shared.files.store import FileStore, open_store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileStore]:
    async with open_store(f"file://{tmp_path}/a%20store") as store:
        yield store
