"""POST /v1/jobs/replay: every dead letter that matches a filter runs again, once."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.fake_worker import FakeWorker
from tests.api.jobs.replay_fixtures import EVERY_DATABASE, fail_job, replay_all
from tests.api.jobs.replay_fixtures import client as client  # noqa: PLC0414 - a fixture
from tests.api.jobs.replay_fixtures import database as database  # noqa: PLC0414 - a fixture
from tests.api.jobs.replay_fixtures import follower as follower  # noqa: PLC0414 - a fixture
from tests.api.jobs.test_listing import Follower, list_ids, submit
from tests.api.serving import problem, serving


@EVERY_DATABASE
@pytest.mark.parametrize("place", ["redis", "ledger", "half"])
async def test_every_failed_job_is_replayed_once_however_often_it_is_requested(
    client: httpx2.AsyncClient, worker: FakeWorker, follower: Follower, redis: Any, place: str
) -> None:
    ids = []
    for number in range(7):
        ids.append(await fail_job(client, worker, tags={"n": str(number)}))
        if place == "ledger" or (place == "half" and number == 3):
            await follower.follow()
    await submit(client)
    await worker.succeed(await worker.claim())
    if place == "ledger":
        for id in ids:
            await follower.forget(redis, id)
    counted = await replay_all(client, dry_run=True)
    assert (counted["matched"], counted["replayed"], counted["items"], counted["next_cursor"]) == (
        7,
        0,
        [],
        None,
    )
    both = await asyncio.gather(replay_all(client), replay_all(client))
    items = [item for one in both for item in one["items"]]
    assert sorted(item["replay_of"] for item in items) == ids
    await worker.drain()
    for step in ("before the ledger knows", "as it knows", "when it alone does"):
        summary = await replay_all(client)
        assert (summary["matched"], summary["already_replayed"], summary["replayed"]) == (
            7,
            7,
            0,
        ), step
        assert (await replay_all(client, dry_run=True))["already_replayed"] == 7
        if step != "before the ledger knows":
            for item in items:
                await follower.forget(redis, item["id"])
                await redis.delete(*await redis.keys(f"{worker.queue.prefix}idem:*") or ["none"])
        else:
            await follower.follow()


async def test_a_failed_replay_can_be_replayed_in_turn(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    first = await fail_job(client, worker)
    of = [first]
    for _ in range(3):
        summary = await replay_all(client)
        assert [item["replay_of"] for item in summary["items"]] == [of[-1]]
        claimed = await worker.claim()
        await worker.fail(claimed)
        of.append(claimed.id)
    assert (await replay_all(client, dry_run=True))["matched"] == 4


async def test_cursors_lead_through_every_match(
    client: httpx2.AsyncClient,
    worker: FakeWorker,
    follower: Follower,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tandem_api.jobs.replays.BATCH_JOBS", 2)
    monkeypatch.setattr("tandem_api.jobs.replays.PAGE_JOBS", 3)
    ids = []
    for number in range(11):
        ids.append(await fail_job(client, worker))
        if number == 5:
            await follower.follow()
    for how in ({"dry_run": True}, {"dry_run": True, "ids": ids}, {}):
        assert (await replay_all(client, **{**how, "dry_run": True}))["matched"] == 11
        matched, of, cursor = [], [], None
        while True:
            summary = await replay_all(client, limit=4, cursor=cursor, **how)
            matched.append(summary["matched"])
            of += [item["replay_of"] for item in summary["items"]]
            if (cursor := summary["next_cursor"]) is None:
                break
        assert matched == [4, 4, 3]
    assert of == ids[::-1]


async def test_a_call_stops_at_its_time_limit(
    client: httpx2.AsyncClient, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [await fail_job(client, worker) for _ in range(3)]
    monkeypatch.setattr("tandem_api.jobs.replays.CALL_SECONDS", 0.0)
    monkeypatch.setattr("tandem_api.jobs.replays.PAGE_JOBS", 1)
    cursor = None
    for id in reversed(ids):
        summary = await replay_all(client, cursor=cursor)
        assert [item["replay_of"] for item in summary["items"]] == [id]
        cursor = summary["next_cursor"]
    assert cursor is None or (await replay_all(client, cursor=cursor))["matched"] == 0


KEYS = st.sampled_from(["task", "queue", "tag.a", "tag.b", "q", "since", "until", "state"])


@EVERY_DATABASE
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(names=st.sets(KEYS, max_size=4), turns=st.lists(st.integers(0, 999), min_size=4, max_size=4))
async def test_a_filter_matches_what_the_list_shows(
    client: httpx2.AsyncClient,
    worker: FakeWorker,
    follower: Follower,
    names: set[str],
    turns: list[int],
) -> None:
    if not await list_ids(client):
        for number in range(14):
            task, kind = (
                ("t.strict", "cancel")
                if number % 3 == 1
                else ("t.any", ("fail", "cancel", "wait")[number % 3])
            )
            tags = {"a": str(number % 2), **({"b": "x y"} if number % 5 == 0 else {})}
            id = await submit(
                client, task=task, tags=tags, queue=("default", "slow")[number % 4 // 2]
            )
            if kind == "fail":
                await worker.fail(await worker.claim())
            elif kind == "cancel":
                await client.post(f"/v1/jobs/{id}/cancel")
            else:
                await worker.claim()
            if number == 6:
                await follower.follow()
    times = [job["submitted_at"] for job in (await client.get("/v1/jobs")).json()["items"]]
    values = {
        "task": ["t.any", "t.strict", "t.none"],
        "queue": ["default", "slow"],
        "tag.a": ["0", "1", "2"],
        "tag.b": ["x y"],
        "q": ["STRICT", "card", "b=X", "nothing"],
        "since": times,
        "until": times,
        "state": ["failed", "cancelled", "cancelled,failed"],
    }
    query = {
        name: values[name][turn % len(values[name])]
        for name, turn in zip(sorted(names), turns, strict=False)
    }
    body: dict[str, Any] = {name: value for name, value in query.items() if "." not in name}
    if tags := {name[4:]: value for name, value in query.items() if "." in name}:
        body["tags"] = tags
    if "state" in body:
        body["state"] = body["state"].split(",")
    found = await list_ids(client, **{"state": "failed", **query})
    assert (await replay_all(client, dry_run=True, **body))["matched"] == len(found)
    some = found[::2]
    summary = await replay_all(client, ids=some, **body)
    assert summary["matched"] == len(some)
    assert {item["replay_of"] for item in summary["items"]} <= set(some)
    assert (await replay_all(client, ids=some, **body))["already_replayed"] == len(some)


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({"colour": "red"}, ["/colour"]),
        ({"state": "succeeded"}, ["/state"]),
        ({"state": ["failed", "queued"]}, ["/state/1"]),
        ({"limit": 0, "tags": {"a": 1}}, ["/limit", "/tags/a"]),
        ({"limit": 10_001}, ["/limit"]),
        ({"since": "yesterday", "until": "2026-13-01T00:00:00Z"}, ["/since", "/until"]),
        ({"ids": ["../x"]}, ["/ids/0"]),
        ({"dry_run": "yes"}, ["/dry_run"]),
        ({"q": "x" * 201}, ["/q"]),
        ([], [""]),
    ],
)
async def test_an_invalid_filter_is_refused_with_a_pointer(
    client: httpx2.AsyncClient, worker: FakeWorker, body: Any, pointers: list[str]
) -> None:
    id = await fail_job(client, worker)
    answer = await client.post("/v1/jobs/replay", json=body)
    assert problem(answer)[0] == 422
    assert sorted(error["pointer"] for error in answer.json()["errors"]) == pointers
    assert (await replay_all(client, dry_run=True))["already_replayed"] == 0
    assert (await client.get(f"/v1/jobs/{id}")).json()["state"] == "failed"


@pytest.mark.parametrize(
    ("content", "status"), [(b"", 400), (b"{", 400), (b'{"cursor": "x"}', 400)]
)
async def test_an_unreadable_body_is_malformed(
    client: httpx2.AsyncClient, content: bytes, status: int
) -> None:
    answer = await client.post(
        "/v1/jobs/replay", content=content, headers={"Content-Type": "application/json"}
    )
    assert problem(answer)[0] == status


@EVERY_DATABASE
async def test_odd_texts_match_nothing_and_null_counts_as_omitted(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    await fail_job(client, worker)
    for name in ("task", "queue", "q"):
        assert (await replay_all(client, **{name: "\0%_!"}))["matched"] == 0
    assert (await replay_all(client, tags={"a\0": "=b"}))["matched"] == 0
    assert (await replay_all(client, ids=["nobody"]))["matched"] == 0
    names = (
        "state",
        "task",
        "queue",
        "tags",
        "since",
        "until",
        "q",
        "ids",
        "limit",
        "cursor",
        "dry_run",
    )
    assert (await replay_all(client, **dict.fromkeys(names)))["replayed"] == 1


async def test_a_tenant_cannot_replay_foreign_jobs(
    client: httpx2.AsyncClient, worker: FakeWorker, redis: Any
) -> None:
    id = await fail_job(client, worker)
    await redis.hset(f"{worker.queue.prefix}job:{id}", "tenant", "acme")
    assert (await replay_all(client, ids=[id]))["matched"] == 0
    assert problem(await client.post(f"/v1/jobs/{id}/replay"))[0] == 404


async def test_without_sql_single_replays_work_and_filters_fail(
    redis_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    away = "postgres://me:hunter2@127.0.0.1:1/nowhere"
    async with serving(redis_url, tmp_path, database_url=away) as client:
        id = await fail_job(client, worker)
        assert (await client.post(f"/v1/jobs/{id}/replay")).status_code == 202
        assert problem(await client.post("/v1/jobs/replay", json={}))[0] == 503
