"""Failed jobs that are counted, replayed once each although the API is killed, and deleted."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import eventually
from tests.journeys.pair import KEY, Pair

JOBS = 60


@pytest.fixture
async def http(pair: Pair) -> AsyncIterator[httpx2.AsyncClient]:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(
        base_url=pair.url, headers=headers, trust_env=False, timeout=60
    ) as client:
        yield client


async def jobs(http: httpx2.AsyncClient, tag: str, state: str) -> list[dict[str, Any]]:
    query = {"tag.batch": tag, "state": state, "limit": "200"}
    items: list[dict[str, Any]] = (await http.get("/v1/jobs", params=query)).json()["items"]
    return items


async def test_failed_jobs_are_replayed_once_their_cause_is_gone(
    pair: Pair, http: httpx2.AsyncClient, tmp_path: Path
) -> None:
    tag, path = tmp_path.name, tmp_path / "needed.txt"
    job = {
        "task": "client.needs",
        "payload": {"path": str(path)},
        "options": {"tags": {"batch": tag}},
    }
    accepted = (await http.post("/v1/jobs/bulk", json=[job] * JOBS)).json()
    old = [job["id"] for job in accepted]

    async def failed() -> bool:
        return len(await jobs(http, tag, "failed")) == JOBS

    await eventually(failed, 30)
    error = (await http.get(f"/v1/jobs/{old[0]}")).json()["error"]
    assert (error["type"], error["next_attempt_at"]) == ("exception:FileNotFoundError", None)
    body: dict[str, Any] = {"tags": {"batch": tag}, "q": "filenotfound"}
    counted = (await http.post("/v1/jobs/replay", json={**body, "dry_run": True})).json()
    assert (counted["matched"], counted["replayed"]) == (JOBS, 0)

    path.write_text("here it is")
    # Kill the API at some moment during the call.
    call = asyncio.create_task(http.post("/v1/jobs/replay", json=body))

    async def has_begun() -> bool:
        return call.done() or len(await jobs(http, tag, "queued,running,succeeded")) > 0

    await eventually(has_begun)
    pair.kill_api()
    await asyncio.wait({call})
    await pair.start_api()
    both = await asyncio.gather(*(http.post("/v1/jobs/replay", json=body) for _ in range(2)))
    assert [response.status_code for response in both] == [200, 200]

    async def succeeded() -> bool:
        return len(await jobs(http, tag, "succeeded")) == JOBS

    await eventually(succeeded, 30)
    new = await jobs(http, tag, "succeeded")
    assert sorted(job["replay_of"] for job in new) == old
    assert {job["result"] for job in new} == {"here it is"}
    counted = (await http.post("/v1/jobs/replay", json=body)).json()
    assert (counted["matched"], counted["already_replayed"], counted["replayed"]) == (JOBS, JOBS, 0)

    answers = await asyncio.gather(*(http.delete(f"/v1/jobs/{id}") for id in old))
    assert {answer.status_code for answer in answers} == {204}
    assert await jobs(http, tag, "failed") == []
    assert (await http.get(f"/v1/jobs/{new[0]['id']}")).json() == new[0]
