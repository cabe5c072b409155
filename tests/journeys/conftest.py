"""Real processes: an API with a worker for a whole test process, and workers for one test."""

import asyncio
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.journeys.pair import Pair, open_pair
from tests.journeys.stage import LEASE_SECONDS, WorkerStage
from tests.worker.workers import Client, open_client


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a short name, for sockets."""
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def processes() -> Iterator[Pair]:
    """The pair of this test process."""
    # A short name: Redis' socket lies in it.
    with (
        tempfile.TemporaryDirectory(prefix="tandem-") as directory,
        open_pair(Pair(Path(directory))) as pair,
    ):
        yield pair


@pytest.fixture
def pair(processes: Pair) -> Pair:
    """An API with a worker, complete."""
    if not processes.is_complete:
        asyncio.run(processes.repair())
    return processes


@pytest.fixture
def stage(short_path: Path) -> Iterator[WorkerStage]:
    """A stage for the workers of a test, without Redis."""
    with closing(WorkerStage(short_path)) as stage:
        yield stage


@pytest.fixture
async def redis_process(stage: WorkerStage) -> subprocess.Popen[bytes]:
    """The Redis of the stage."""
    return await stage.start_redis()


@pytest.fixture
async def client(
    stage: WorkerStage, redis_process: subprocess.Popen[bytes]
) -> AsyncIterator[Client]:
    """A client of the stage's queue."""
    async with open_client(stage.server.url, LEASE_SECONDS) as client:
        yield client
