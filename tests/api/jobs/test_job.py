"""One job over HTTP after its submission: status, long polls, result, and cancellation."""

import asyncio
from typing import Any

import httpx2
import pytest

from tandem_shared.jobs.states import State
from tandem_shared.queue.queue import Queue
from tests.api.fake_worker import FakeWorker
from tests.api.jobs.job_requests import submit_job
from tests.api.serving import problem


async def test_the_etag_changes_with_every_visible_change(
    client: httpx2.AsyncClient, worker: FakeWorker, queue: Queue
) -> None:
    url = f"/v1/jobs/{await submit_job(client)}"
    seen: list[str] = []

    async def look() -> None:
        answer = await client.get(url)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "private, no-cache"
        assert answer.headers["etag"] not in seen
        seen.append(answer.headers["etag"])
        for tags in (seen[-1], f'"x", W/{seen[-1]}', "*"):
            same = await client.get(url, headers={"If-None-Match": tags})
            assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", seen[-1])
        assert (await client.get(url, headers={"If-None-Match": '"x"'})).status_code == 200

    await look()
    claimed = await worker.claim()
    await look()
    await worker.report(claimed, "progress", {"current": 1, "total": 2, "message": None})
    await look()
    # A heartbeat leaves the entity tag as it is.
    await queue.beat("hand-1", "", [(claimed.id, claimed.token)])
    assert (await client.get(url)).headers["etag"] == seen[-1]
    await worker.succeed(claimed)
    await look()


async def test_a_long_poll_waits_for_the_final_state(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    id = await submit_job(client)
    claimed = await worker.claim()
    waiting = asyncio.create_task(client.get(f"/v1/jobs/{id}?wait=25s"))
    await worker.report(claimed, "progress", {"current": 1, "total": 2, "message": None})
    await worker.succeed(claimed, 1)
    answer = await waiting
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")


async def test_a_long_poll_with_an_etag_waits_for_any_change(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    id = await submit_job(client)
    claimed = await worker.claim()
    etag = (await client.get(f"/v1/jobs/{id}")).headers["etag"]
    waiting = asyncio.create_task(
        client.get(f"/v1/jobs/{id}?wait=25", headers={"If-None-Match": etag})
    )
    await worker.report(claimed, "progress", {"current": 1, "total": 2, "message": "half"})
    answer = await waiting
    assert (answer.status_code, answer.json()["progress"]["message"]) == (200, "half")
    assert answer.headers["etag"] != etag
    # At the limit, a matching entity tag gives 304.
    headers = {"If-None-Match": answer.headers["etag"]}
    assert (await client.get(f"/v1/jobs/{id}?wait=250ms", headers=headers)).status_code == 304
    await worker.succeed(claimed)
    # A final job cannot change: 304 comes at once, even with a long wait.
    headers = {"If-None-Match": (await client.get(f"/v1/jobs/{id}")).headers["etag"]}
    async with asyncio.timeout(10):
        assert (await client.get(f"/v1/jobs/{id}?wait=30", headers=headers)).status_code == 304


async def test_a_long_poll_returns_the_current_job_at_its_limit(client: httpx2.AsyncClient) -> None:
    answer = await client.get(f"/v1/jobs/{await submit_job(client)}?wait=0.2")
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")


@pytest.mark.parametrize("query", ["wait=abc", "wait=-1", "wait=", "wait=1e400", "payload=perhaps"])
async def test_an_invalid_parameter_is_malformed(client: httpx2.AsyncClient, query: str) -> None:
    status, detail = problem(await client.get(f"/v1/jobs/{await submit_job(client)}?{query}"))
    assert status == 400
    assert detail.startswith(query.partition("=")[0])


async def test_head_is_get_without_the_body(client: httpx2.AsyncClient) -> None:
    url = f"/v1/jobs/{await submit_job(client)}"
    got, head = await client.get(url), await client.head(url)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", got.headers["etag"])
    assert head.headers["content-length"] == got.headers["content-length"]


async def test_the_result_is_returned_bare(client: httpx2.AsyncClient, worker: FakeWorker) -> None:
    url = f"/v1/jobs/{await submit_job(client)}/result"
    early = await client.get(url)
    assert (early.status_code, early.headers["retry-after"]) == (202, "1")
    assert early.json()["state"] == "queued"
    await worker.succeed(await worker.claim(), [1, {"a": None}])
    answer = await client.get(url)
    assert (answer.status_code, answer.content) == (200, b'[1,{"a":null}]')
    assert answer.headers["content-type"] == "application/json"


async def test_a_job_without_a_result_answers_409(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    failed = await submit_job(client)
    await worker.fail(await worker.claim())
    answer = await client.get(f"/v1/jobs/{failed}/result")
    assert problem(answer) == (409, "the job failed (card): no")
    assert answer.json()["type"] == "/problems/job-failed"
    assert answer.json()["error"] == {
        "type": "card",
        "message": "no",
        "retryable": True,
        "attempt": 1,
    }
    cancelled = await submit_job(client)
    await client.post(f"/v1/jobs/{cancelled}/cancel")
    answer = await client.get(f"/v1/jobs/{cancelled}/result")
    assert (problem(answer)[0], answer.json()["type"]) == (409, "/problems/job-cancelled")


@pytest.mark.parametrize("name", ["result.json", "result-0.json"])
async def test_a_result_kept_as_a_file_redirects(
    client: httpx2.AsyncClient, worker: FakeWorker, name: str
) -> None:
    id = await submit_job(client)
    await worker.succeed(await worker.claim(), {"file": {"file": f"{id}/{name}", "size": 300_000}})
    answer = await client.get(f"/v1/jobs/{id}/result")
    assert (answer.status_code, answer.headers["location"]) == (303, f"/v1/jobs/{id}/files/{name}")


@pytest.mark.parametrize(
    "result",
    [
        {"file": {"file": "U"}, "status": 200},
        {"file": {"file": "U"}},
        {"file": {"file": "J/result.json", "url": "https://elsewhere.example/"}},
        {"file": {"a": 1}},
        {"file": "U"},
        None,
    ],
)
async def test_a_result_that_mentions_a_file_is_returned_as_is(
    client: httpx2.AsyncClient, worker: FakeWorker, result: Any
) -> None:
    id = await submit_job(client)
    await worker.succeed(await worker.claim(), result)
    answer = await client.get(f"/v1/jobs/{id}/result")
    assert (answer.status_code, answer.json()) == (200, result)


async def test_cancel_ends_a_queued_job_and_requests_a_running_one_to_stop(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    id = await submit_job(client)
    for _ in range(2):
        answer = await client.post(f"/v1/jobs/{id}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    running = await submit_job(client)
    claimed = await worker.claim()
    answer = await client.post(f"/v1/jobs/{running}/cancel")
    assert (answer.status_code, answer.json()["state"], answer.json()["cancel_requested"]) == (
        202,
        "running",
        True,
    )
    await worker.succeed(claimed, answer="cancelled")  # too late: the cancellation wins
    assert (await worker.record(running)).state is State.CANCELLED


async def test_cancelling_a_final_job_changes_nothing(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    id = await submit_job(client)
    await worker.succeed(await worker.claim(), 1)
    before = (await client.get(f"/v1/jobs/{id}")).json()
    answer = await client.post(f"/v1/jobs/{id}/cancel")
    assert (answer.status_code, answer.json()) == (202, before)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/result"),
        ("POST", "/cancel"),
        ("GET", "/stream"),
        ("GET", "?wait=20"),
        ("GET", "/files/x"),
    ],
)
async def test_an_unknown_job_is_not_found(
    client: httpx2.AsyncClient, method: str, path: str
) -> None:
    assert problem(await client.request(method, f"/v1/jobs/01JC8XW3T4Z5{path}"))[0] == 404
