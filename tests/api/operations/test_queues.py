"""Queues are paused and resumed over HTTP, and waiting jobs show it."""

import httpx2
import pytest

from tests.api.fake_worker import FakeWorker
from tests.api.serving import problem


async def test_a_paused_queue_shows_it_and_its_jobs_wait(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    answer = await client.post("/v1/queues/default/pause")
    assert (answer.status_code, answer.json()["paused"]) == (200, True)
    job = (await client.post("/v1/jobs", json={"task": "t.any"})).json()
    assert job["state"] == "waiting"
    item, served = (await client.get("/v1/queues")).json()["items"]
    assert (served["name"], served["workers"], served["waiting"]) == ("slow", 1, 0)
    assert (item["name"], item["paused"], item["waiting"], item["queued"]) == (
        "default",
        True,
        1,
        0,
    )
    answer = await client.post("/v1/queues/default/resume")
    assert (answer.status_code, answer.json()["paused"]) == (200, False)
    assert (await client.get(f"/v1/jobs/{job['id']}")).json()["state"] == "queued"


async def test_pausing_again_and_before_the_first_job_changes_nothing_else(
    client: httpx2.AsyncClient,
) -> None:
    for _ in range(2):
        answer = await client.post("/v1/queues/new/pause")
        assert answer.json() == {
            "name": "new",
            "paused": True,
            **dict.fromkeys(("waiting", "scheduled", "queued", "running", "retrying"), 0),
            "oldest_age": None,
            "workers": 0,
        }
    for _ in range(2):
        assert (await client.post("/v1/queues/new/resume")).json()["paused"] is False


@pytest.mark.parametrize("name", ["%20", "a%2Fb", "x" * 65, ".x"])
async def test_an_invalid_queue_name_is_not_found(client: httpx2.AsyncClient, name: str) -> None:
    assert problem(await client.post(f"/v1/queues/{name}/pause"))[0] == 404
