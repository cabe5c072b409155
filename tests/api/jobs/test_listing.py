"""GET /v1/jobs: complete at once, in pages, and with jobs that only the ledger still has."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

from tandem_shared.jobs.states import State
from tandem_shared.ledger.ledger import Ledger, open_ledger
from tandem_shared.ledger.rows import row_from_values
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import load_settings
from tests.api.fake_worker import FakeWorker
from tests.api.serving import problem, serving


class Follower:
    """Projects events into the ledger, one step per call of the test."""

    def __init__(self, queue: Queue, ledger: Ledger) -> None:
        self.queue, self.ledger = queue, ledger

    async def follow(self) -> None:
        await self.queue.events.join(100_000)
        taken = await self.queue.events.read_new("one", block=0.01)
        assert taken is not None
        found = await self.queue.events.ledger_values(taken.jobs, max_bytes=1 << 30)
        rows = [
            row_from_values(id, facts)
            for id, facts in zip(taken.jobs, found, strict=True)
            if facts is not None
        ]
        await self.ledger.save(rows)
        await self.queue.events.acknowledge(
            taken.entries, [(one.id, one.stamp) for one in rows if one.final]
        )

    async def forget(self, redis: Any, id: str) -> None:
        """Deletes the record from Redis, as its expiry would."""
        await redis.delete(f"{self.queue.prefix}job:{id}")


@pytest.fixture
async def follower(queue: Queue) -> AsyncIterator[Follower]:
    async with open_ledger(load_settings()) as ledger:
        yield Follower(queue, ledger)


async def submit(client: httpx2.AsyncClient, **options: Any) -> str:
    task = options.pop("task", "t.any")
    payload = {"url": "https://x.example"} if task == "t.strict" else {"n": 1}
    answer = await client.post(
        "/v1/jobs", json={"task": task, "payload": payload, "options": options}
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def list_ids(client: httpx2.AsyncClient, **params: Any) -> list[str]:
    """The ids on all pages, following the `next` links."""
    answer = await client.get(
        "/v1/jobs", params={name.replace("__", "."): value for name, value in params.items()}
    )
    assert answer.status_code == 200, answer.text
    ids = [item["id"] for item in answer.json()["items"]]
    while answer.json()["next_cursor"] is not None:
        link = answer.headers["link"]
        assert link.endswith('>; rel="next"')
        answer = await client.get(link[1 : link.index(">")])
        ids += [item["id"] for item in answer.json()["items"]]
    assert "link" not in answer.headers
    return ids


async def test_a_job_is_listed_as_soon_as_it_is_accepted(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    assert (await client.get("/v1/jobs")).json() == {"items": [], "next_cursor": None}
    first, second = await submit(client), await submit(client)
    assert await list_ids(client) == [second, first]
    assert await list_ids(client, state="queued") == [second, first]
    await client.post(f"/v1/jobs/{second}/cancel")
    assert await list_ids(client, state="queued") == [first]
    assert await list_ids(client, state="cancelled,failed") == [second]


async def test_the_list_is_the_same_however_far_the_ledger_lags(
    client: httpx2.AsyncClient, follower: Follower
) -> None:
    ids: list[str] = []
    for number in range(9):
        ids.insert(0, await submit(client, tags={"n": str(number % 2)}))
        if number in (3, 5):
            await follower.follow()
        await client.post(f"/v1/jobs/{ids[-1 if number < 5 else 0]}/cancel")
        for limit in (1, 4, 200):
            assert await list_ids(client, limit=limit) == ids
            odd = [id for at, id in enumerate(reversed(ids)) if at % 2][::-1]
            assert await list_ids(client, limit=limit, tag__n="1") == odd
        cancelled = set(await list_ids(client, state="cancelled", limit=2))
        assert cancelled == {
            item["id"] for item in (await client.get("/v1/jobs")).json()["items"] if item["done"]
        }
    await follower.follow()
    assert await list_ids(client, limit=2) == ids


async def test_listed_items_equal_the_single_jobs(
    client: httpx2.AsyncClient, worker: FakeWorker, follower: Follower
) -> None:
    id = await submit(client, tags={"a": "ü"})
    claimed = await worker.claim()
    await follower.follow()
    await worker.report(
        claimed, "progress", {"current": 1, "total": 2, "message": None}
    )  # this change has no event
    for _ in range(2):
        alone = (await client.get(f"/v1/jobs/{id}")).json()
        assert (await client.get("/v1/jobs")).json()["items"] == [alone]
        assert alone["progress"]["current"] == 1
        if not alone["done"]:
            await worker.succeed(claimed, {"x": 1})
            await follower.follow()


FILTERS: list[tuple[dict[str, str], Callable[[dict[str, Any]], bool]]] = [
    ({"task": "t.strict"}, lambda job: job["task"] == "t.strict"),
    ({"queue": "mail"}, lambda job: job["queue"] == "mail"),
    (
        {"queue": "mail", "task": "t.any"},
        lambda job: (job["queue"], job["task"]) == ("mail", "t.any"),
    ),
    ({"tag.customer": "17"}, lambda job: job["tags"].get("customer") == "17"),
    (
        {"tag.customer": "17", "tag.kind": "a b"},
        lambda job: job["tags"] == {"customer": "17", "kind": "a b"},
    ),
    ({"q": "STRICT"}, lambda job: job["task"] == "t.strict"),
    ({"q": "kind=A"}, lambda job: "kind" in job["tags"]),
    ({"state": "scheduled"}, lambda job: job["state"] == "scheduled"),
    ({"q": "nothing has it"}, lambda _: False),
]


@pytest.mark.parametrize("projected", [True, False])
async def test_every_filter_and_time_range_selects_its_jobs(
    client: httpx2.AsyncClient, follower: Follower, projected: bool
) -> None:
    for number in range(12):
        options: dict[str, Any] = {"task": "t.strict" if number % 3 else "t.any"}
        if number % 2:
            options["queue"] = "mail"
        if number % 4 < 2:
            options["tags"] = (
                {"customer": "17"} if number < 6 else {"customer": "17", "kind": "a b"}
            )
        if number > 9:
            options["delay"] = "1h"
        await submit(client, **options)
    if projected:
        await follower.follow()
    jobs = (await client.get("/v1/jobs")).json()["items"]
    assert len(jobs) == 12
    for params, fits in FILTERS:
        assert await list_ids(client, **params) == [job["id"] for job in jobs if fits(job)], params
    middle = jobs[5]["submitted_at"]
    later = [job["id"] for job in jobs if job["submitted_at"] >= middle]
    assert set(await list_ids(client, since=middle)) >= set(later)
    assert sorted(
        await list_ids(client, since=middle) + await list_ids(client, until=middle)
    ) == sorted(job["id"] for job in jobs)
    assert await list_ids(client, since=middle.replace("Z", "+00:00")) == await list_ids(
        client, since=middle
    )


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("state=done", "/state"),
        ("state=", "/state"),
        ("limit=0", "/limit"),
        ("limit=201", "/limit"),
        ("limit=x", "/limit"),
        ("since=yesterday", "/since"),
        ("until=2026-13-01T00:00:00Z", "/until"),
        ("colour=red", "/colour"),
        ("tag.=x", "/tag."),
        (f"tag.a={'x' * 257}", "/tag.a"),
        (f"tag.{'a' * 65}=x", "/tag"),
        ("&".join(f"tag.{number}=1" for number in range(51)), "/tag"),
        ("&".join(f"tag.{number}=1" for number in range(5000)), "/tag"),
        ("task=a&task=b", "/task"),
        ("q=" + "x" * 300, "/q"),
    ],
)
async def test_an_unknown_filter_is_refused_by_name(
    client: httpx2.AsyncClient, query: str, pointer: str
) -> None:
    answer = await client.get(f"/v1/jobs?{query}")
    assert problem(answer)[0] == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize("cursor", ["", "x", "%00", "AAAA", "é", "a" * 200])
async def test_a_forged_cursor_is_malformed(client: httpx2.AsyncClient, cursor: str) -> None:
    assert problem(await client.get("/v1/jobs", params={"cursor": cursor}))[0] == 400


@pytest.mark.parametrize("projected", [True, False])
async def test_a_tenant_lists_only_its_own_jobs(
    client: httpx2.AsyncClient, redis: Any, queue: Queue, follower: Follower, projected: bool
) -> None:
    mine, other = await submit(client), await submit(client)
    await redis.hset(f"{queue.prefix}job:{other}", "tenant", "acme")
    if projected:
        await follower.follow()
    assert await list_ids(client) == [mine]


async def test_a_final_job_outlives_its_redis_record(
    client: httpx2.AsyncClient, redis: Redis, worker: FakeWorker, follower: Follower
) -> None:
    id = await submit(client, tags={"a": "b"})
    claimed = await worker.claim()
    await worker.succeed(claimed, {"rows": 3})
    await follower.follow()
    before = await client.get(f"/v1/jobs/{id}?payload=true")
    entry = (
        await client.get(f"/v1/jobs/{id}/stream", headers={"Accept": "application/x-ndjson"})
    ).text.splitlines()
    await follower.forget(redis, id)
    after = await client.get(f"/v1/jobs/{id}?payload=true")
    assert (after.json(), after.headers["etag"]) == (before.json(), before.headers["etag"])
    assert after.json()["payload"] == {"n": 1}
    same = {"If-None-Match": before.headers["etag"]}
    assert (await client.get(f"/v1/jobs/{id}?wait=20", headers=same)).status_code == 304
    assert (await client.get(f"/v1/jobs/{id}/result")).json() == {"rows": 3}
    assert (await client.post(f"/v1/jobs/{id}/cancel")).json()["state"] == "succeeded"
    shown = (
        await client.get(f"/v1/jobs/{id}/stream", headers={"Accept": "application/x-ndjson"})
    ).text.splitlines()
    assert shown == entry
    assert await list_ids(client, state="succeeded") == [id]


async def test_an_expired_failed_job_shows_its_error_and_attempts(
    client: httpx2.AsyncClient, redis: Redis, worker: FakeWorker, follower: Follower
) -> None:
    id = await submit(client)
    await worker.fail(await worker.claim(), State.RETRYING)
    await worker.queue.tick()
    await worker.fail(await worker.claim())
    await follower.follow()
    await follower.forget(redis, id)
    job = (await client.get(f"/v1/jobs/{id}")).json()
    assert (job["error"]["type"], [one["outcome"] for one in job["attempts"]]) == (
        "card",
        ["failed", "failed"],
    )
    assert problem(await client.get(f"/v1/jobs/{id}/result"))[0] == 409
    assert await list_ids(client, q="card") == [id]


async def test_an_id_that_never_existed_is_not_found(
    client: httpx2.AsyncClient, follower: Follower
) -> None:
    await follower.follow()
    for id in ("nobody", "0" * 22, "é"):
        assert problem(await client.get(f"/v1/jobs/{id}"))[0] == 404
        assert problem(await client.post(f"/v1/jobs/{id}/cancel"))[0] == 404


async def test_without_sql_only_ledger_endpoints_fail(
    redis_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    away = "postgres://me:hunter2@127.0.0.1:1/nowhere"
    async with serving(redis_url, tmp_path, database_url=away) as client:
        id = await submit(client)
        assert (await client.get(f"/v1/jobs/{id}")).status_code == 200
        for path in ("/v1/jobs", f"/v1/jobs/{'0' * 22}"):
            answer = await client.get(path)
            assert problem(answer)[0] == 503
            assert answer.headers["retry-after"] == "1"
            assert "hunter2" not in answer.text
        assert problem(await client.get("/v1/jobs/nobody"))[0] == 404
        assert (await client.get("/readyz")).status_code == 200


async def test_the_lag_is_reported_and_blocks_submissions_above_its_limit(
    client: httpx2.AsyncClient, follower: Follower
) -> None:
    assert (await client.get("/readyz")).json()["ledger"] is None
    await follower.queue.events.join(2000)  # bytes
    await submit(client)
    ready = (await client.get("/readyz")).json()
    assert ready["ledger"]["lag_entries"] == 1
    assert ready["ledger"]["lag_seconds"] >= 0
    accepted = 1
    while (answer := await client.post("/v1/jobs", json={"task": "t.any"})).status_code == 202:
        accepted += 1
    assert problem(answer)[0] == 503
    assert answer.headers["retry-after"] == "1"
    assert "behind" in answer.json()["detail"]
    assert (await client.get("/readyz")).json()["ledger"]["lag_entries"] == accepted
    await follower.follow()
    await submit(client)
