"""DELETE /v1/jobs/{id} removes every trace of a job, however far the ledger lags."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from tandem_shared.files.names import job_path
from tandem_shared.files.store import open_store
from tandem_shared.jobs.states import State
from tandem_shared.ledger.query import JobFilter
from tandem_shared.ledger.rows import row_from_values
from tandem_shared.queue.messages import Finish, Segment
from tandem_shared.queue.steps import Step
from tandem_shared.streams.segments import segment_path
from tests.api.fake_worker import FakeWorker
from tests.api.jobs.replay_fixtures import EVERY_DATABASE, fail_job, replay_all
from tests.api.jobs.replay_fixtures import client as client  # noqa: PLC0414 - a fixture
from tests.api.jobs.replay_fixtures import database as database  # noqa: PLC0414 - a fixture
from tests.api.jobs.replay_fixtures import follower as follower  # noqa: PLC0414 - a fixture
from tests.api.jobs.test_listing import Follower, list_ids, submit
from tests.api.serving import problem, serving, stored_paths


@pytest.fixture
async def complete_job(
    client: httpx2.AsyncClient, worker: FakeWorker, tmp_path: Path
) -> tuple[str, Path]:
    """A job with every kind of data in Redis and in the store: its id, and the store's root."""
    body = {
        "task": "t.any",
        "payload": {"n": 1},
        "options": {"tags": {"a": "b"}, "concurrency_key": "k"},
    }
    answer = await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "mine"})
    claimed = await worker.claim()
    await worker.report(claimed, "output", 1)
    await worker.report(claimed, "output", 2)
    await worker.queue.steps.keep(Step(claimed.id, claimed.token, "one", b"1"))
    (first, _) = await worker.queue.output(claimed.id)
    segment = Segment(first.stamp, first.stamp, 10)
    began = int(claimed.token.partition(".")[0])
    async with open_store(f"file://{tmp_path}") as store:
        await store.write(segment_path(claimed.id, segment), b"x" * 10)
        await store.write(job_path(claimed.id, began, "rows.csv"), b"a,b")
        await store.write(job_path("another", began, "rows.csv"), b"a,b")
    assert await worker.queue.archive(claimed.id, claimed.token, segment, first.weight) is not None
    files = [
        {
            "name": "rows.csv",
            "size": 3,
            "sha256": "0" * 64,
            "url": f"/v1/jobs/{claimed.id}/files/rows.csv",
        }
    ]
    done = Finish(
        claimed.id,
        claimed.token,
        State.SUCCEEDED,
        "succeeded",
        b"1",
        0.0,
        msgspec.json.encode(files),
    )
    assert await worker.queue.finish([done]) == ["ok"]
    return answer.json()["id"], tmp_path


@EVERY_DATABASE
@pytest.mark.parametrize("place", ["redis", "ledger", "both"])
async def test_deletion_leaves_nothing_behind(
    client: httpx2.AsyncClient,
    complete_job: tuple[str, Path],
    follower: Follower,
    redis: Any,
    place: str,
) -> None:
    (id, root), other = complete_job, await submit(client, tags={"a": "b"})
    if place != "redis":
        await follower.follow()
    if place == "ledger":
        await follower.forget(redis, id)
    assert len([key for key in await redis.keys("*") if id.encode() in key]) == (
        3 if place == "ledger" else 4
    )
    assert len(stored_paths(root)) == 3
    answer = await client.delete(f"/v1/jobs/{id}")
    assert (answer.status_code, answer.content) == (204, b"")
    left = [key for key in await redis.keys("*") if id.encode() in key or b":idem:" in key]
    assert not left or place == "ledger"  # keys that outlive the record expire by themselves
    assert [name.split("/")[1] for name in stored_paths(root)] == ["another"]
    await follower.follow()
    assert await list_ids(client) == await list_ids(client, tag__a="b") == [other]
    assert [record.id async for record, _ in follower.ledger.export()] == [other]
    for call in (
        "GET /{}",
        "GET /{}/result",
        "GET /{}/stream",
        "GET /{}/files/rows.csv",
        "DELETE /{}",
        "POST /{}/cancel",
    ):
        method, _, path = call.format(id).partition(" ")
        assert problem(await client.request(method, f"/v1/jobs{path}"))[0] == 404, call
    assert problem(await client.post(f"/v1/jobs/{id}/replay"))[0] == 404
    if place != "ledger":
        body = {
            "task": "t.any",
            "payload": {"n": 2},
        }  # the idempotency key is free again, even for other content
        assert (
            await client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "mine"})
        ).status_code == 202


async def test_only_final_jobs_of_the_tenant_are_deleted(
    client: httpx2.AsyncClient, worker: FakeWorker, redis: Any
) -> None:
    id = await submit(client)
    assert problem(await client.delete(f"/v1/jobs/{id}")) == (
        409,
        "the job is queued: cancel it first",
    )
    claimed = await worker.claim()
    assert problem(await client.delete(f"/v1/jobs/{id}"))[0] == 409
    await worker.fail(claimed, State.RETRYING)
    assert problem(await client.delete(f"/v1/jobs/{id}"))[0] == 409
    await client.post(f"/v1/jobs/{id}/cancel")
    await redis.hset(f"{worker.queue.prefix}job:{id}", "tenant", "acme")
    assert problem(await client.delete(f"/v1/jobs/{id}"))[0] == 404
    await redis.hset(f"{worker.queue.prefix}job:{id}", "tenant", "default")
    assert (await client.delete(f"/v1/jobs/{id}")).status_code == 204
    for unknown in ("nobody", "0" * 22):
        assert problem(await client.delete(f"/v1/jobs/{unknown}"))[0] == 404


@EVERY_DATABASE
@pytest.mark.parametrize("known", [False, True])
async def test_a_late_projection_does_not_restore_a_deleted_job(
    client: httpx2.AsyncClient, worker: FakeWorker, follower: Follower, known: bool
) -> None:
    id = await fail_job(client, worker, tags={"a": "b"})
    if known:
        await follower.follow()
    else:
        await follower.queue.events.join(100_000)
    # The rows are read while the job exists, and written after it was deleted.
    (facts,) = await follower.queue.events.ledger_values([id], max_bytes=1 << 30)
    assert facts is not None
    assert (await client.delete(f"/v1/jobs/{id}")).status_code == 204
    late = row_from_values(id, facts)
    await asyncio.gather(*(follower.ledger.save([late]) for _ in range(3)))
    await follower.queue.events.acknowledge([], [(id, late.stamp)])
    assert problem(await client.get(f"/v1/jobs/{id}"))[0] == 404
    assert problem(await client.delete(f"/v1/jobs/{id}"))[0] == 404
    assert (
        await list_ids(client)
        == await list_ids(client, tag__a="b")
        == await list_ids(client, q="card")
        == []
    )
    assert (await follower.ledger.find(JobFilter(tags=(("a", "b"),)), limit=5)).records == []
    assert await follower.ledger.database.read("SELECT job FROM tandem_tags") == []
    assert [record.id async for record, _ in follower.ledger.export()] == []


@EVERY_DATABASE
async def test_deletion_and_projection_may_run_at_once(
    client: httpx2.AsyncClient, worker: FakeWorker, follower: Follower
) -> None:
    await follower.queue.events.join(100_000)
    ids = [await fail_job(client, worker, tags={"a": "b"}) for _ in range(12)]
    facts = await follower.queue.events.ledger_values(ids, max_bytes=1 << 30)
    rows = [row_from_values(id, one) for id, one in zip(ids, facts, strict=True) if one is not None]
    gone = ids[::2]
    done = await asyncio.gather(
        *(client.delete(f"/v1/jobs/{id}") for id in gone),
        *(follower.ledger.save(rows) for _ in range(6)),
    )
    assert [one.status_code for one in done if isinstance(one, httpx2.Response)] == [204] * len(
        gone
    )
    await follower.follow()
    assert await list_ids(client, tag__a="b") == await list_ids(client) == ids[1::2][::-1]


@EVERY_DATABASE
async def test_a_replay_is_remembered_as_long_as_its_original(
    client: httpx2.AsyncClient, worker: FakeWorker, follower: Follower
) -> None:
    id = await fail_job(client, worker)
    (new,) = [item["id"] for item in (await replay_all(client))["items"]]
    await worker.drain()
    await follower.follow()
    keep = dict.fromkeys((State.SUCCEEDED, State.CANCELLED), 3600.0)
    await follower.ledger.database.write(
        [("UPDATE tandem_jobs SET ended = 1, id = '00' || id", [()])]
    )
    await follower.ledger.database.write(
        [("UPDATE tandem_tags SET job = '00' || job, tag = '=00' || substr(tag, 2)", [()])]
    )
    assert await follower.ledger.expire(keep, now=time.time()) == 0
    assert await follower.ledger.get(f"00{new}", tenant="default") is not None
    await follower.ledger.tombstone(f"00{id}", now=time.time())
    assert (
        await follower.ledger.expire(keep, now=time.time()) == 1
    )  # the tombstone has not expired yet
    assert await follower.ledger.get(f"00{new}", tenant="default") is None
    await follower.ledger.database.write([("UPDATE tandem_jobs SET ended = 1", [()])])
    assert await follower.ledger.expire(keep, now=time.time()) == 1
    assert await follower.ledger.database.read("SELECT id FROM tandem_jobs") == []


async def test_a_half_done_deletion_is_completed_by_the_next_request(
    redis_url: str, client: httpx2.AsyncClient, complete_job: tuple[str, Path]
) -> None:
    id, root = complete_job
    away = "postgres://me:hunter2@127.0.0.1:1/nowhere"
    async with serving(redis_url, root, database_url=away) as halved:
        assert problem(await halved.delete(f"/v1/jobs/{id}"))[0] == 503
        assert (await halved.get(f"/v1/jobs/{id}")).json()["state"] == "succeeded"
    assert (await client.delete(f"/v1/jobs/{id}")).status_code == 204
    assert problem(await client.get(f"/v1/jobs/{id}"))[0] == 404
