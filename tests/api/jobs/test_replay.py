"""POST /v1/jobs/{id}/replay: one failed or cancelled job runs again as a new job."""

import asyncio
from typing import Any

import httpx2
import msgspec
import pytest

from tests.api.fake_worker import ANY, FakeWorker
from tests.api.jobs.replay_fixtures import EVERY_DATABASE, fail_job, replay_all
from tests.api.jobs.replay_fixtures import client as client  # noqa: PLC0414 - a fixture
from tests.api.jobs.replay_fixtures import database as database  # noqa: PLC0414 - a fixture
from tests.api.jobs.replay_fixtures import follower as follower  # noqa: PLC0414 - a fixture
from tests.api.jobs.test_listing import Follower, submit
from tests.api.serving import problem
from tests.conftest import eventually

OPTIONS: dict[str, Any] = {
    "queue": "slow",
    "priority": "high",
    "timeout": "7s",
    "expires_in": "1h",
    "tags": {"customer": "17"},
    "retry": {"max_attempts": 1, "base": "3s"},
    "concurrency_key": "k",
    "concurrency_limit": 2,
}


@EVERY_DATABASE
@pytest.mark.parametrize("place", ["redis", "ledger"])
async def test_a_replay_is_a_new_job_with_the_same_options(
    client: httpx2.AsyncClient, worker: FakeWorker, follower: Follower, redis: Any, place: str
) -> None:
    id = await fail_job(client, worker, **OPTIONS)
    if place == "ledger":
        await follower.follow()
        await follower.forget(redis, id)
    old = (await client.get(f"/v1/jobs/{id}?payload=true")).json()
    answer = await client.post(f"/v1/jobs/{id}/replay")
    assert answer.status_code == 202, answer.text
    new = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{new['id']}"
    assert (new["replay_of"], new["state"], new["attempt"]) == (id, "queued", 0)
    assert new["id"] != id
    again = (await client.get(f"/v1/jobs/{new['id']}?payload=true")).json()
    same = ("task", "queue", "priority", "timeout", "max_attempts", "tags", "payload")
    assert [again[name] for name in same] == [old[name] for name in same]
    claimed = await worker.claim()
    options = msgspec.json.decode(claimed.options)
    assert (claimed.id, claimed.max_attempts, options["retry"]["base"]) == (new["id"], 1, 3.0)
    kept = await redis.hmget(f"{worker.queue.prefix}job:{new['id']}", ["ck", "cl", "exp", "at"])
    assert kept[:2] == [b"k", b"2"]
    assert int(kept[2]) - int(kept[3]) // 1000 == 3_600_000
    assert (await client.get(f"/v1/jobs/{id}?payload=true")).json() == old


async def test_only_failed_or_cancelled_jobs_are_replayed(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    id = await submit(client)
    for state in ("queued", "running", "succeeded"):
        answer = await client.post(f"/v1/jobs/{id}/replay")
        assert (problem(answer)[0], state in problem(answer)[1]) == (409, True)
        if state == "queued":
            claimed = await worker.claim()
        elif state == "running":
            await worker.succeed(claimed)
    cancelled = await submit(client, delay="1h")
    await client.post(f"/v1/jobs/{cancelled}/cancel")
    assert (await client.post(f"/v1/jobs/{cancelled}/replay")).json()[
        "state"
    ] == "queued"  # a replay starts without the delay
    for unknown in ("nobody", "0" * 22):
        assert problem(await client.post(f"/v1/jobs/{unknown}/replay"))[0] == 404


async def test_requests_with_one_idempotency_key_create_one_replay(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    id, other = await fail_job(client, worker), await fail_job(client, worker)
    headers = {"Idempotency-Key": '"once"'}
    first, *others = await asyncio.gather(
        *(client.post(f"/v1/jobs/{id}/replay", headers=headers) for _ in range(5))
    )
    answers = [first, *others]
    assert {one.status_code for one in answers} == {202}
    assert len({one.json()["id"] for one in answers}) == 1
    assert sum("idempotent-replayed" not in one.headers for one in answers) == 1
    # The payload is the same, but the request is another job's replay, or a submission.
    submission = {"task": "t.any", "payload": {"n": 1}}
    for answer in (
        await client.post(f"/v1/jobs/{other}/replay", headers=headers),
        await client.post("/v1/jobs", headers=headers, json=submission),
    ):
        assert problem(answer)[0] == 422
        assert answer.json()["type"] == "/problems/idempotency-key-reused"
    assert (await client.post(f"/v1/jobs/{id}/replay")).json()["id"] != first.json()["id"]


async def test_a_replay_supports_prefer_wait(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    id = await fail_job(client, worker)
    waiting = asyncio.create_task(
        client.post(f"/v1/jobs/{id}/replay", headers={"Prefer": "wait=20"})
    )

    async def there() -> bool:
        return bool((await client.get("/v1/queues")).json()["items"][0]["queued"])

    await eventually(there)
    await worker.succeed(await worker.claim(), 5)
    answer = await waiting
    assert (answer.status_code, answer.json()["result"], answer.json()["replay_of"]) == (200, 5, id)


async def test_a_replay_is_validated_against_the_current_task(
    client: httpx2.AsyncClient, worker: FakeWorker, redis: Any
) -> None:
    id = await fail_job(client, worker)
    narrow = {"type": "object", "properties": {"n": {"type": "string"}}}
    worker.entries.remove(ANY)
    await worker.publish(msgspec.structs.replace(ANY, version=2, payload_schema=narrow))
    await client.get("/openapi.json")  # makes the API read the catalogue
    answer = await client.post(f"/v1/jobs/{id}/replay")
    assert problem(answer)[0] == 422
    assert [one["pointer"] for one in answer.json()["errors"]] == ["/payload/n"]
    summary = await replay_all(client)
    assert (summary["matched"], summary["replayed"], summary["refused"]) == (1, 0, 1)
    assert summary["items"][0]["replay_of"] == id
    assert summary["items"][0]["error"]["errors"][0]["pointer"] == "/payload/n"
    await redis.hset(f"{worker.queue.prefix}job:{id}", "task", "t.gone")
    answer = await client.post(f"/v1/jobs/{id}/replay")
    assert problem(answer)[0] == 422
    assert answer.json()["type"] == "/problems/unknown-task"
