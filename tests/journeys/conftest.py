"""One Redis, API and worker for all tests of a test process that use them over HTTP."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys.pair import Pair, open_pair


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a short name, for sockets."""
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def processes() -> Iterator[Pair]:
    # A short name: Redis' socket lies in it.
    with (
        tempfile.TemporaryDirectory(prefix="tandem-") as directory,
        open_pair(Pair(Path(directory))) as pair,
    ):
        yield pair


@pytest.fixture
def pair(processes: Pair) -> Pair:
    if not processes.is_complete:
        asyncio.run(processes.repair())
    return processes
