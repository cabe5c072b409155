"""Failed jobs, their replays, and an API on either ledger database."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tandem_shared.ledger.ledger import open_ledger
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import load_settings
from tests.api.fake_worker import FakeWorker
from tests.api.jobs.test_listing import Follower, submit
from tests.api.serving import serving


@pytest.fixture
def database(request: pytest.FixtureRequest, ledger_url: str) -> str:
    """The URL of the ledger database: SQLite, unless a test asks for PostgreSQL."""
    return (
        ledger_url
        if getattr(request, "param", "sqlite") == "sqlite"
        else str(request.getfixturevalue("postgres"))
    )


EVERY_DATABASE = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
async def follower(queue: Queue, database: str) -> AsyncIterator[Follower]:
    async with open_ledger(load_settings(database_url=database)) as ledger:
        yield Follower(queue, ledger)


@pytest.fixture
async def client(
    redis_url: str, worker: FakeWorker, tmp_path: Path, database: str
) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(redis_url, tmp_path, database_url=database) as client:
        yield client


async def fail_job(client: httpx2.AsyncClient, worker: FakeWorker, **options: Any) -> str:
    id = await submit(client, **options)
    await worker.fail(await worker.claim())
    return id


async def replay_all(client: httpx2.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/v1/jobs/replay", json=body)
    assert answer.status_code == 200, answer.text
    summary: dict[str, Any] = answer.json()
    assert (
        summary["matched"] == summary["already_replayed"] + summary["refused"] + summary["replayed"]
        or summary["dry_run"]
    )
    return summary
