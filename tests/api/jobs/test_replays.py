"""Dead letters: run again one by one, and all that match a filter, each of them once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tandem_shared.ledger.ledger import open_ledger
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import load_settings
from tests.api.fake_worker import ANY, Hand
from tests.api.jobs.test_listing import Follower, listed, submit
from tests.api.serving import problem, serving
from tests.conftest import eventually


@pytest.fixture
def database(request: pytest.FixtureRequest, ledger_url: str) -> str:
    """The ledger's, SQLite unless a test names another."""
    return (
        ledger_url
        if getattr(request, "param", "sqlite") == "sqlite"
        else str(request.getfixturevalue("postgres"))
    )


BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
async def follower(queue: Queue, database: str) -> AsyncIterator[Follower]:
    async with open_ledger(load_settings(database_url=database)) as ledger:
        yield Follower(queue, ledger)


@pytest.fixture
async def client(
    redis_url: str, hand: Hand, tmp_path: Path, database: str
) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(redis_url, tmp_path, database_url=database) as client:
        yield client


OPTIONS: dict[str, Any] = {
    "queue": "slow", "priority": "high", "timeout": "7s", "expires_in": "1h", "tags": {"customer": "17"},
    "retry": {"max_attempts": 1, "base": "3s"}, "concurrency_key": "k", "concurrency_limit": 2,
}  # fmt: skip


async def failed(client: httpx2.AsyncClient, hand: Hand, **options: Any) -> str:
    id = await submit(client, **options)
    await hand.fail(await hand.take())
    return id


async def replay(client: httpx2.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/v1/jobs/replay", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    assert (
        told["matched"] == told["already_replayed"] + told["refused"] + told["replayed"]
        or told["dry_run"]
    )
    return told


# ------------------------------------------------------------------------------------------ one job


@BOTH
@pytest.mark.parametrize("place", ["redis", "ledger"])
async def test_a_replay_is_a_new_job_like_the_old_one(
    client: httpx2.AsyncClient, hand: Hand, follower: Follower, redis: Any, place: str
) -> None:
    id = await failed(client, hand, **OPTIONS)
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
    claimed = await hand.take()
    options = msgspec.json.decode(claimed.options)
    assert (claimed.id, claimed.max_attempts, options["retry"]["base"]) == (new["id"], 1, 3.0)
    kept = await redis.hmget(f"{hand.queue.prefix}job:{new['id']}", ["ck", "cl", "exp", "at"])
    assert kept[:2] == [b"k", b"2"]
    assert int(kept[2]) - int(kept[3]) // 1000 == 3_600_000
    assert (await client.get(f"/v1/jobs/{id}?payload=true")).json() == old


async def test_only_what_failed_or_was_cancelled_is_replayed(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    id = await submit(client)
    for state in ("queued", "running", "succeeded"):
        answer = await client.post(f"/v1/jobs/{id}/replay")
        assert (problem(answer)[0], state in problem(answer)[1]) == (409, True)
        if state == "queued":
            claimed = await hand.take()
        elif state == "running":
            await hand.succeed(claimed)
    cancelled = await submit(client, delay="1h")
    await client.post(f"/v1/jobs/{cancelled}/cancel")
    assert (await client.post(f"/v1/jobs/{cancelled}/replay")).json()[
        "state"
    ] == "queued"  # its delay is over
    for unknown in ("nobody", "0" * 22):
        assert problem(await client.post(f"/v1/jobs/{unknown}/replay"))[0] == 404


async def test_an_idempotency_key_makes_one_replay(client: httpx2.AsyncClient, hand: Hand) -> None:
    id, other = await failed(client, hand), await failed(client, hand)
    headers = {"Idempotency-Key": '"once"'}
    first, *others = await asyncio.gather(
        *(client.post(f"/v1/jobs/{id}/replay", headers=headers) for _ in range(5))
    )
    answers = [first, *others]
    assert {one.status_code for one in answers} == {202}
    assert len({one.json()["id"] for one in answers}) == 1
    assert sum("idempotent-replayed" not in one.headers for one in answers) == 1
    # The same payload, but another job's replay, or no replay.
    submission = {"task": "t.any", "payload": {"n": 1}}
    for answer in (
        await client.post(f"/v1/jobs/{other}/replay", headers=headers),
        await client.post("/v1/jobs", headers=headers, json=submission),
    ):
        assert problem(answer)[0] == 422
        assert answer.json()["type"] == "/problems/idempotency-key-reused"
    assert (await client.post(f"/v1/jobs/{id}/replay")).json()["id"] != first.json()["id"]


async def test_a_replay_may_be_waited_for(client: httpx2.AsyncClient, hand: Hand) -> None:
    id = await failed(client, hand)
    waiting = asyncio.create_task(
        client.post(f"/v1/jobs/{id}/replay", headers={"Prefer": "wait=20"})
    )

    async def there() -> bool:
        return bool((await client.get("/v1/queues")).json()["items"][0]["queued"])

    await eventually(there)
    await hand.succeed(await hand.take(), 5)
    answer = await waiting
    assert (answer.status_code, answer.json()["result"], answer.json()["replay_of"]) == (200, 5, id)


async def test_the_task_as_it_is_now_decides(
    client: httpx2.AsyncClient, hand: Hand, redis: Any
) -> None:
    id = await failed(client, hand)
    narrow = {"type": "object", "properties": {"n": {"type": "string"}}}
    hand.entries.remove(ANY)
    await hand.publish(msgspec.structs.replace(ANY, version=2, payload_schema=narrow))
    await client.get("/openapi.json")  # which reads the catalogue
    answer = await client.post(f"/v1/jobs/{id}/replay")
    assert problem(answer)[0] == 422
    assert [one["pointer"] for one in answer.json()["errors"]] == ["/payload/n"]
    told = await replay(client)
    assert (told["matched"], told["replayed"], told["refused"]) == (1, 0, 1)
    assert told["items"][0]["replay_of"] == id
    assert told["items"][0]["error"]["errors"][0]["pointer"] == "/payload/n"
    await redis.hset(f"{hand.queue.prefix}job:{id}", "task", "t.gone")
    answer = await client.post(f"/v1/jobs/{id}/replay")
    assert problem(answer)[0] == 422
    assert answer.json()["type"] == "/problems/unknown-task"


# ----------------------------------------------------------------------------------- all that match


@BOTH
@pytest.mark.parametrize("place", ["redis", "ledger", "half"])
async def test_every_failed_job_is_replayed_once_however_often_it_is_asked(
    client: httpx2.AsyncClient, hand: Hand, follower: Follower, redis: Any, place: str
) -> None:
    ids = []
    for number in range(7):
        ids.append(await failed(client, hand, tags={"n": str(number)}))
        if place == "ledger" or (place == "half" and number == 3):
            await follower.follow()
    await submit(client)
    await hand.succeed(await hand.take())
    if place == "ledger":
        for id in ids:
            await follower.forget(redis, id)
    counted = await replay(client, dry_run=True)
    assert (counted["matched"], counted["replayed"], counted["items"], counted["next_cursor"]) == (
        7,
        0,
        [],
        None,
    )
    both = await asyncio.gather(replay(client), replay(client))
    items = [item for one in both for item in one["items"]]
    assert sorted(item["replay_of"] for item in items) == ids
    await hand.drain()
    for step in ("before the ledger knows", "as it knows", "when it alone does"):
        told = await replay(client)
        assert (told["matched"], told["already_replayed"], told["replayed"]) == (7, 7, 0), step
        assert (await replay(client, dry_run=True))["already_replayed"] == 7
        if step != "before the ledger knows":
            for item in items:
                await follower.forget(redis, item["id"])
                await redis.delete(*await redis.keys(f"{hand.queue.prefix}idem:*") or ["none"])
        else:
            await follower.follow()


async def test_a_replay_that_fails_is_a_dead_letter_of_its_own(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    first = await failed(client, hand)
    of = [first]
    for _ in range(3):
        told = await replay(client)
        assert [item["replay_of"] for item in told["items"]] == [of[-1]]
        claimed = await hand.take()
        await hand.fail(claimed)
        of.append(claimed.id)
    assert (await replay(client, dry_run=True))["matched"] == 4


async def test_portions_lead_through_all(
    client: httpx2.AsyncClient, hand: Hand, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_api.jobs.replays.BATCH_JOBS", 2)
    monkeypatch.setattr("tandem_api.jobs.replays.PAGE_JOBS", 3)
    ids = []
    for number in range(11):
        ids.append(await failed(client, hand))
        if number == 5:
            await follower.follow()
    for how in ({"dry_run": True}, {"dry_run": True, "ids": ids}, {}):
        assert (await replay(client, **{**how, "dry_run": True}))["matched"] == 11
        matched, of, cursor = [], [], None
        while True:
            told = await replay(client, limit=4, cursor=cursor, **how)
            matched.append(told["matched"])
            of += [item["replay_of"] for item in told["items"]]
            if (cursor := told["next_cursor"]) is None:
                break
        assert matched == [4, 4, 3]
    assert of == ids[::-1]


async def test_a_call_ends_when_its_time_is_up(
    client: httpx2.AsyncClient, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [await failed(client, hand) for _ in range(3)]
    monkeypatch.setattr("tandem_api.jobs.replays.CALL_SECONDS", 0.0)
    monkeypatch.setattr("tandem_api.jobs.replays.PAGE_JOBS", 1)
    cursor = None
    for id in reversed(ids):
        told = await replay(client, cursor=cursor)
        assert [item["replay_of"] for item in told["items"]] == [id]
        cursor = told["next_cursor"]
    assert cursor is None or (await replay(client, cursor=cursor))["matched"] == 0


KEYS = st.sampled_from(["task", "queue", "tag.a", "tag.b", "q", "since", "until", "state"])


@BOTH
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(names=st.sets(KEYS, max_size=4), turns=st.lists(st.integers(0, 999), min_size=4, max_size=4))
async def test_a_filter_finds_what_the_list_finds(
    client: httpx2.AsyncClient, hand: Hand, follower: Follower, names: set[str], turns: list[int]
) -> None:
    if not await listed(client):
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
                await hand.fail(await hand.take())
            elif kind == "cancel":
                await client.post(f"/v1/jobs/{id}/cancel")
            else:
                await hand.take()
            if number == 6:
                await follower.follow()
    times = [job["submitted_at"] for job in (await client.get("/v1/jobs")).json()["items"]]
    values = {
        "task": ["t.any", "t.strict", "t.none"], "queue": ["default", "slow"], "tag.a": ["0", "1", "2"],
        "tag.b": ["x y"], "q": ["STRICT", "card", "b=X", "nothing"], "since": times, "until": times,
        "state": ["failed", "cancelled", "cancelled,failed"],
    }  # fmt: skip
    query = {
        name: values[name][turn % len(values[name])]
        for name, turn in zip(sorted(names), turns, strict=False)
    }
    body: dict[str, Any] = {name: value for name, value in query.items() if "." not in name}
    if tags := {name[4:]: value for name, value in query.items() if "." in name}:
        body["tags"] = tags
    if "state" in body:
        body["state"] = body["state"].split(",")
    found = await listed(client, **{"state": "failed", **query})
    assert (await replay(client, dry_run=True, **body))["matched"] == len(found)
    some = found[::2]
    told = await replay(client, ids=some, **body)
    assert told["matched"] == len(some)
    assert {item["replay_of"] for item in told["items"]} <= set(some)
    assert (await replay(client, ids=some, **body))["already_replayed"] == len(some)


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
async def test_what_is_no_filter_is_refused_by_its_pointer(
    client: httpx2.AsyncClient, hand: Hand, body: Any, pointers: list[str]
) -> None:
    id = await failed(client, hand)
    answer = await client.post("/v1/jobs/replay", json=body)
    assert problem(answer)[0] == 422
    assert sorted(error["pointer"] for error in answer.json()["errors"]) == pointers
    assert (await replay(client, dry_run=True))["already_replayed"] == 0
    assert (await client.get(f"/v1/jobs/{id}")).json()["state"] == "failed"


@pytest.mark.parametrize(
    ("content", "status"), [(b"", 400), (b"{", 400), (b'{"cursor": "x"}', 400)]
)
async def test_what_cannot_be_read_is_malformed(
    client: httpx2.AsyncClient, content: bytes, status: int
) -> None:
    answer = await client.post(
        "/v1/jobs/replay", content=content, headers={"Content-Type": "application/json"}
    )
    assert problem(answer)[0] == status


@BOTH
async def test_odd_texts_match_nothing_and_null_is_left_out(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    await failed(client, hand)
    for name in ("task", "queue", "q"):
        assert (await replay(client, **{name: "\0%_!"}))["matched"] == 0
    assert (await replay(client, tags={"a\0": "=b"}))["matched"] == 0
    assert (await replay(client, ids=["nobody"]))["matched"] == 0
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
    assert (await replay(client, **dict.fromkeys(names)))["replayed"] == 1


async def test_a_tenants_are_its_own(client: httpx2.AsyncClient, hand: Hand, redis: Any) -> None:
    id = await failed(client, hand)
    await redis.hset(f"{hand.queue.prefix}job:{id}", "tenant", "acme")
    assert (await replay(client, ids=[id]))["matched"] == 0
    assert problem(await client.post(f"/v1/jobs/{id}/replay"))[0] == 404


async def test_without_sql_one_job_is_replayed_and_a_filter_is_not(
    redis_url: str, hand: Hand, tmp_path: Path
) -> None:
    away = "postgres://me:hunter2@127.0.0.1:1/nowhere"
    async with serving(redis_url, tmp_path, database_url=away) as client:
        id = await failed(client, hand)
        assert (await client.post(f"/v1/jobs/{id}/replay")).status_code == 202
        assert problem(await client.post("/v1/jobs/replay", json={}))[0] == 503
