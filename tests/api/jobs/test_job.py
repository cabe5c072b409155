"""One job over HTTP: accepted, idempotent, waited for, its status and its result, cancelled."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import httpx2
import pytest

from tandem_shared.jobs.states import State
from tandem_shared.queue.queue import Queue
from tests.api.fake_worker import Hand
from tests.api.serving import problem
from tests.conftest import eventually

JOB_FIELDS = (
    "id task state done queue priority attempt max_attempts submitted_at scheduled_for started_at finished_at timeout"
    " progress result error cancel_requested tags files attempts links"
).split()


async def submit(
    client: httpx2.AsyncClient, job: dict[str, Any] | None = None, **headers: str
) -> httpx2.Response:
    return await client.post(
        "/v1/jobs", json=job or {"task": "t.any", "payload": {}}, headers=headers
    )


async def submitted(client: httpx2.AsyncClient, job: dict[str, Any] | None = None) -> str:
    answer = await submit(client, job)
    assert answer.status_code == 202, answer.text
    id: str = answer.json()["id"]
    return id


# ------------------------------------------------------------------------------------------- submit


async def test_a_job_is_accepted_and_is_what_redis_then_holds(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    answer = await submit(client, {"task": "t.strict", "payload": {"url": "https://example.org/"}})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/json"
    assert "preference-applied" not in answer.headers
    assert "idempotent-replayed" not in answer.headers
    assert list(job) == JOB_FIELDS
    assert (job["state"], job["done"], job["attempt"], job["attempts"]) == ("queued", False, 0, [])
    # The task's own defaults.
    assert (job["queue"], job["priority"], job["timeout"], job["max_attempts"]) == (
        "slow",
        "low",
        60,
        5,
    )
    assert (await client.get(answer.headers["location"])).json() == job


async def test_options_win_over_the_tasks_defaults_field_by_field(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    job = {
        "task": "t.strict",
        "payload": {"url": "abc"},
        "options": {
            "queue": "default",
            "priority": "high",
            "timeout": "2m",
            "retry": {"base": "250ms", "cap": None, "max_attempts": None},
            "expires_in": 3600,
            "concurrency_key": "customer-17",
            "concurrency_limit": 2,
            "tags": {"customer": "17"},
            "callback": None,
            "run_at": None,
            "delay": None,
        },
    }
    view = (await submit(client, job, traceparent=f"00-{'a' * 32}-{'b' * 16}-01")).json()
    assert (view["queue"], view["priority"], view["timeout"], view["tags"]) == (
        "default",
        "high",
        120,
        {"customer": "17"},
    )
    options = (await hand.record(view["id"])).options
    assert options.retry == {"max_attempts": 5, "base": 0.25, "cap": 300.0}
    assert options.traceparent == f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.mark.parametrize(
    "options", [None, {}, {"queue": None, "retry": None, "tags": None, "timeout": None}]
)
async def test_null_means_left_out(client: httpx2.AsyncClient, options: Any) -> None:
    answer = await submit(client, {"task": "t.any", "payload": {}, "options": options})
    assert answer.status_code == 202
    assert (answer.json()["queue"], answer.json()["timeout"]) == ("default", 30)


async def test_a_payload_may_be_left_out_where_nothing_is_required(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    await submitted(client, {"task": "t.any"})
    assert (await hand.take()).payload == b"{}"


async def test_the_payload_passes_through_as_it_came(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    payload = b'{"big": 123456789012345678901234567890, "exact": 0.10, "text": "\\u00e4\xc3\xa4" }'
    body = b'{"payload" : ' + payload + b' , "task":"t.any"}'
    answer = await client.post(
        "/v1/jobs", content=body, headers={"content-type": "application/json; charset=UTF-8"}
    )
    assert answer.status_code == 202
    assert (await hand.take()).payload == payload
    shown = await client.get(answer.headers["location"], params={"payload": "true"})
    assert payload in shown.content
    assert "payload" not in (await client.get(answer.headers["location"])).json()


@pytest.mark.parametrize(
    "content_type",
    [
        "Application/JSON",
        'application/json; charset="utf-8"',
        "application/json;odata=x; charset=utf-8",
    ],
)
async def test_json_by_any_of_its_names(client: httpx2.AsyncClient, content_type: str) -> None:
    answer = await client.post(
        "/v1/jobs", content=b'{"task":"t.any"}', headers={"content-type": content_type}
    )
    assert answer.status_code == 202


@pytest.mark.parametrize("delay", ["1h", 3600.5, "90m"])
async def test_a_delayed_job_is_scheduled(client: httpx2.AsyncClient, delay: Any) -> None:
    answer = await submit(client, {"task": "t.any", "options": {"delay": delay}})
    job = answer.json()
    assert (job["state"], job["scheduled_for"] > job["submitted_at"]) == ("scheduled", True)
    assert (await client.get(answer.headers["location"])).json() == job


async def test_a_job_for_a_time_is_scheduled_for_it_in_any_zone(client: httpx2.AsyncClient) -> None:
    moment = datetime.now(UTC).replace(microsecond=250_000) + timedelta(days=2)
    text = moment.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat()
    answer = await submit(client, {"task": "t.any", "options": {"run_at": text}})
    job = answer.json()
    shown = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert (job["state"], job["scheduled_for"]) == ("scheduled", shown)
    assert (await client.get(answer.headers["location"])).json() == job


async def test_a_time_in_the_past_is_now(client: httpx2.AsyncClient) -> None:
    job = (
        await submit(client, {"task": "t.any", "options": {"run_at": "2001-01-01T00:00:00Z"}})
    ).json()
    assert (job["state"], job["scheduled_for"]) == ("queued", None)


# -------------------------------------------------------------------------------------- idempotency


@pytest.mark.parametrize(
    "spellings",
    [
        ('"invoice-4711"', "invoice-4711"),
        (r'"a\"b"', 'a"b'),
        ('"a";p=1', "a"),
        ('"a"; p="b;c" ;d', '"a"'),
    ],
)
async def test_a_key_that_comes_again_gives_the_first_job(
    client: httpx2.AsyncClient, hand: Hand, spellings: tuple[str, str]
) -> None:
    job = {"task": "t.any", "payload": {"a": 1, "b": 2}}
    first = await submit(client, job, **{"Idempotency-Key": spellings[0]})
    claimed = await hand.take()
    await hand.succeed(claimed, 7)
    # Spelt differently, with other options: the same job.
    again = await client.post(
        "/v1/jobs",
        content=b'{"payload":{"b":2, "a":1},"task":"t.any","options":{"priority":"high"}}',
        headers={"Idempotency-Key": spellings[1], "Content-Type": "application/json"},
    )
    assert again.status_code == 202
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert (again.json()["state"], again.json()["result"]) == ("succeeded", 7)
    waited = await submit(client, job, **{"Idempotency-Key": spellings[1], "Prefer": "wait=1"})
    assert (waited.status_code, waited.headers["idempotent-replayed"]) == (200, "true")
    assert "retry-after" not in waited.headers


async def test_a_key_for_something_else_is_refused(client: httpx2.AsyncClient) -> None:
    await submit(client, {"task": "t.any", "payload": {"a": 1}}, **{"Idempotency-Key": "k"})
    answer = await submit(
        client, {"task": "t.any", "payload": {"a": 2}}, **{"Idempotency-Key": "k"}
    )
    assert problem(answer)[0] == 422
    assert answer.json()["type"].endswith("/idempotency-key-reused")


async def test_two_at_once_are_one_job(client: httpx2.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(submit(client, None, **{"Idempotency-Key": "both"}) for _ in range(8))
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sorted(answer.headers.get("idempotent-replayed", "") for answer in answers) == [
        "",
        *["true"] * 7,
    ]


@pytest.mark.parametrize("key", ['"open', '""', "x" * 256, '"a" b'])
async def test_a_key_that_is_none_is_malformed(client: httpx2.AsyncClient, key: str) -> None:
    assert problem(await submit(client, None, **{"Idempotency-Key": key}))[0] == 400


# ------------------------------------------------------------------------------------- Prefer: wait


async def test_a_job_that_is_final_in_time_is_answered_whole(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    waiting = asyncio.create_task(submit(client, None, Prefer="respond-async, wait=20"))
    claimed = await eventually(hand_takes(hand))
    await hand.succeed(claimed, {"x": 1})
    answer = await waiting
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=20"
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    assert (answer.json()["done"], answer.json()["result"]) == (True, {"x": 1})


def hand_takes(hand: Hand) -> Any:
    async def take() -> Any:
        try:
            return await hand.take()
        except ValueError:  # nothing is due yet
            return None

    return take


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=0", "wait=0"),
        ("wait=1", "wait=1"),
        ('WAIT="1"; x=y', "wait=1"),
        ("wait=x", None),
        ("wait=-1", None),
    ],
)
async def test_a_job_that_is_not_final_in_time_is_accepted(
    client: httpx2.AsyncClient, prefer: str, applied: str | None
) -> None:
    answer = await submit(client, None, Prefer=prefer)
    assert (answer.status_code, answer.headers.get("preference-applied")) == (202, applied)
    assert answer.headers["retry-after"] == "1"


async def test_a_longer_wait_is_thirty_seconds(client: httpx2.AsyncClient, hand: Hand) -> None:
    waiting = asyncio.create_task(submit(client, None, Prefer="wait=86400"))
    await hand.succeed(await eventually(hand_takes(hand)))
    assert (await waiting).headers["preference-applied"] == "wait=30"


# ------------------------------------------------------------------------------------------- status


async def test_the_etag_changes_with_all_that_can_be_seen(
    client: httpx2.AsyncClient, hand: Hand, queue: Queue
) -> None:
    url = f"/v1/jobs/{await submitted(client)}"
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
    claimed = await hand.take()
    await look()
    await hand.say(claimed, "progress", {"current": 1, "total": 2, "message": None})
    await look()
    # A heartbeat is no change.
    await queue.beat("hand-1", "", [(claimed.id, claimed.token)])
    assert (await client.get(url)).headers["etag"] == seen[-1]
    await hand.succeed(claimed)
    await look()


async def test_a_long_poll_waits_for_the_final_state(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    id = await submitted(client)
    claimed = await hand.take()
    waiting = asyncio.create_task(client.get(f"/v1/jobs/{id}?wait=25s"))
    await hand.say(claimed, "progress", {"current": 1, "total": 2, "message": None})
    await hand.succeed(claimed, 1)
    answer = await waiting
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")


async def test_a_long_poll_with_an_etag_waits_for_any_change(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    id = await submitted(client)
    claimed = await hand.take()
    etag = (await client.get(f"/v1/jobs/{id}")).headers["etag"]
    waiting = asyncio.create_task(
        client.get(f"/v1/jobs/{id}?wait=25", headers={"If-None-Match": etag})
    )
    await hand.say(claimed, "progress", {"current": 1, "total": 2, "message": "half"})
    answer = await waiting
    assert (answer.status_code, answer.json()["progress"]["message"]) == (200, "half")
    assert answer.headers["etag"] != etag
    # The tag that is known at the limit.
    headers = {"If-None-Match": answer.headers["etag"]}
    assert (await client.get(f"/v1/jobs/{id}?wait=250ms", headers=headers)).status_code == 304
    await hand.succeed(claimed)
    # A final job that is known: at once, whatever the wait.
    headers = {"If-None-Match": (await client.get(f"/v1/jobs/{id}")).headers["etag"]}
    async with asyncio.timeout(10):
        assert (await client.get(f"/v1/jobs/{id}?wait=30", headers=headers)).status_code == 304


async def test_a_long_poll_at_its_limit_is_the_job_as_it_is(client: httpx2.AsyncClient) -> None:
    answer = await client.get(f"/v1/jobs/{await submitted(client)}?wait=0.2")
    assert (answer.status_code, answer.json()["state"]) == (200, "queued")


@pytest.mark.parametrize("query", ["wait=abc", "wait=-1", "wait=", "wait=1e400", "payload=perhaps"])
async def test_a_parameter_that_is_none_is_malformed(
    client: httpx2.AsyncClient, query: str
) -> None:
    status, detail = problem(await client.get(f"/v1/jobs/{await submitted(client)}?{query}"))
    assert status == 400
    assert detail.startswith(query.partition("=")[0])


async def test_head_is_get_without_the_body(client: httpx2.AsyncClient) -> None:
    url = f"/v1/jobs/{await submitted(client)}"
    got, head = await client.get(url), await client.head(url)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", got.headers["etag"])
    assert head.headers["content-length"] == got.headers["content-length"]


# ------------------------------------------------------------------------------------------- result


async def test_the_result_is_bare(client: httpx2.AsyncClient, hand: Hand) -> None:
    url = f"/v1/jobs/{await submitted(client)}/result"
    early = await client.get(url)
    assert (early.status_code, early.headers["retry-after"]) == (202, "1")
    assert early.json()["state"] == "queued"
    await hand.succeed(await hand.take(), [1, {"a": None}])
    answer = await client.get(url)
    assert (answer.status_code, answer.content) == (200, b'[1,{"a":null}]')
    assert answer.headers["content-type"] == "application/json"


async def test_without_a_result_there_is_a_conflict(client: httpx2.AsyncClient, hand: Hand) -> None:
    failed = await submitted(client)
    await hand.fail(await hand.take())
    answer = await client.get(f"/v1/jobs/{failed}/result")
    assert problem(answer) == (409, "the job failed (card): no")
    assert answer.json()["type"] == "/problems/job-failed"
    assert answer.json()["error"] == {
        "type": "card",
        "message": "no",
        "retryable": True,
        "attempt": 1,
    }
    cancelled = await submitted(client)
    await client.post(f"/v1/jobs/{cancelled}/cancel")
    answer = await client.get(f"/v1/jobs/{cancelled}/result")
    assert (problem(answer)[0], answer.json()["type"]) == (409, "/problems/job-cancelled")


@pytest.mark.parametrize("name", ["result.json", "result-0.json"])
async def test_a_result_kept_as_a_file_is_elsewhere(
    client: httpx2.AsyncClient, hand: Hand, name: str
) -> None:
    id = await submitted(client)
    await hand.succeed(await hand.take(), {"file": {"file": f"{id}/{name}", "size": 300_000}})
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
async def test_a_result_that_only_names_a_file_is_itself(
    client: httpx2.AsyncClient, hand: Hand, result: Any
) -> None:
    id = await submitted(client)
    await hand.succeed(await hand.take(), result)
    answer = await client.get(f"/v1/jobs/{id}/result")
    assert (answer.status_code, answer.json()) == (200, result)


# ------------------------------------------------------------------------------------------- cancel


async def test_cancel_ends_what_has_not_begun_and_asks_what_has(
    client: httpx2.AsyncClient, hand: Hand
) -> None:
    id = await submitted(client)
    for _ in range(2):
        answer = await client.post(f"/v1/jobs/{id}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    running = await submitted(client)
    claimed = await hand.take()
    answer = await client.post(f"/v1/jobs/{running}/cancel")
    assert (answer.status_code, answer.json()["state"], answer.json()["cancel_requested"]) == (
        202,
        "running",
        True,
    )
    await hand.succeed(claimed)  # too late: the request wins
    assert (await hand.record(running)).state is State.CANCELLED


async def test_a_final_job_stays_as_it_is(client: httpx2.AsyncClient, hand: Hand) -> None:
    id = await submitted(client)
    await hand.succeed(await hand.take(), 1)
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
