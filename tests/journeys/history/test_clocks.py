"""Hosts whose clocks are wrong by weeks: nothing is deleted, late or failed for it."""

import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tandem_shared.times import rfc3339
from tests.conftest import eventually
from tests.journeys.history import skewed
from tests.journeys.pair import KEY, Pair, open_pair

DAY = 86400


@pytest.fixture(params=[40 * DAY, -40 * DAY], ids=["ahead", "behind"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Path, Pair]]:
    """The directory of an API and a worker that are both on hosts with such a clock, and these."""
    program = (skewed.__name__, str(request.param))
    with (
        tempfile.TemporaryDirectory(prefix="tandem-") as name,
        open_pair(Pair(Path(name), program=program)) as pair,
    ):
        yield Path(name), pair


@pytest.fixture
async def http(place: tuple[Path, Pair]) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(
        base_url=place[1].url, headers=headers, trust_env=False, timeout=60
    ) as client:
        yield client


def swept(directory: Path) -> int:
    return (directory / "processes.log").read_text().count("the file store was swept")


def projected(directory: Path) -> list[str]:
    """The finished jobs in the ledger, as SQLite finds them."""
    with closing(sqlite3.connect(directory / "tandem.db")) as database:
        return [id for (id,) in database.execute("SELECT id FROM tandem_jobs WHERE ended > 0")]


async def test_a_host_with_a_wrong_clock_keeps_and_runs_everything(
    place: tuple[Path, Pair], http: httpx2.AsyncClient
) -> None:
    directory, _ = place
    began = datetime.now(UTC)

    async def run(**options: Any) -> str:
        body = {"task": "client.ends", "payload": {"result": 1}, "options": options}
        answer = await http.post("/v1/jobs", json=body, headers={"Prefer": "wait=30"})
        assert (answer.status_code, answer.json()["state"]) == (200, "succeeded"), answer.text
        return str(answer.json()["id"])

    upload = (await http.post("/v1/files", content=b"kept")).json()
    soon = rfc3339(began.timestamp() + 1)
    ids = [await run(), await run(delay="300ms", expires_in="1h"), await run(run_at=soon)]
    await eventually(lambda: set(ids) <= set(projected(directory)), 30)

    # Both look for old data again, the worker after each batch that it writes to the ledger.
    for _ in range(3):
        ids.append(await run())
        await eventually(lambda: set(ids) <= set(projected(directory)), 30)
    before = swept(directory)
    await eventually(lambda: swept(directory) > before + 1, 30)
    assert sorted(projected(directory)) == sorted(ids)
    assert (await http.get(f"/v1/files/{upload['id']}")).content == b"kept"

    # What they date is dated by Redis, whose clock is right.
    expires = datetime.fromisoformat(upload["expires_at"])
    assert timedelta(days=6.9) < expires - began < timedelta(days=7.1)
    window = {
        "since": (began - timedelta(seconds=1)).isoformat(),
        "until": (began + timedelta(hours=1)).isoformat(),
    }
    listed = (await http.get("/v1/jobs", params=window)).json()["items"]
    assert sorted(job["id"] for job in listed) == sorted(ids)
    assert (await http.get("/v1/jobs", params={"until": window["since"]})).json()["items"] == []
