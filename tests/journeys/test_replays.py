"""Dead letters of a real worker are found, counted and replayed once, although the API dies."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import eventually
from tests.journeys.pair import KEY, Pair

MANY = 60


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


async def test_what_failed_runs_again_when_its_cause_is_gone(
    pair: Pair, http: httpx2.AsyncClient, tmp_path: Path
) -> None:
    tag, path = tmp_path.name, tmp_path / "needed.txt"
    job = {
        "task": "client.needs",
        "payload": {"path": str(path)},
        "options": {"tags": {"batch": tag}},
    }
    accepted = (await http.post("/v1/jobs/bulk", json=[job] * MANY)).json()
    old = [one["id"] for one in accepted]

    async def failed() -> bool:
        return len(await jobs(http, tag, "failed")) == MANY

    await eventually(failed, 30)
    error = (await http.get(f"/v1/jobs/{old[0]}")).json()["error"]
    assert (error["type"], error["next_attempt_at"]) == ("exception:FileNotFoundError", None)
    body: dict[str, Any] = {"tags": {"batch": tag}, "q": "filenotfound"}
    told = (await http.post("/v1/jobs/replay", json={**body, "dry_run": True})).json()
    assert (told["matched"], told["replayed"]) == (MANY, 0)

    path.write_text("here it is")
    # The API is killed at some moment of the call; nobody knows how far it came.
    call = asyncio.create_task(http.post("/v1/jobs/replay", json=body))

    async def begun() -> bool:
        return call.done() or len(await jobs(http, tag, "queued,running,succeeded")) > 0

    await eventually(begun)
    pair.kill_api()
    await asyncio.wait({call})
    await pair.start_api()
    both = await asyncio.gather(*(http.post("/v1/jobs/replay", json=body) for _ in range(2)))
    assert [one.status_code for one in both] == [200, 200]

    async def succeeded() -> bool:
        return len(await jobs(http, tag, "succeeded")) == MANY

    await eventually(succeeded, 30)
    new = await jobs(http, tag, "succeeded")
    assert sorted(one["replay_of"] for one in new) == old
    assert {one["result"] for one in new} == {"here it is"}
    told = (await http.post("/v1/jobs/replay", json=body)).json()
    assert (told["matched"], told["already_replayed"], told["replayed"]) == (MANY, MANY, 0)

    answers = await asyncio.gather(*(http.delete(f"/v1/jobs/{id}") for id in old))
    assert {one.status_code for one in answers} == {204}
    assert await jobs(http, tag, "failed") == []
    assert (await http.get(f"/v1/jobs/{new[0]['id']}")).json() == new[0]
