"""POST /v1/jobs: what a job is accepted with, idempotency keys, and `Prefer: wait`."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import httpx2
import pytest

from tests.api.fake_worker import FakeWorker
from tests.api.jobs.job_requests import post_job, submit_job
from tests.api.serving import problem
from tests.conftest import eventually

JOB_FIELDS = (
    "id task state done queue priority attempt max_attempts submitted_at scheduled_for started_at"
    " finished_at timeout progress result error waiting_for cancel_requested tags files attempts"
    " links"
).split()


async def test_an_accepted_job_equals_the_record_in_redis(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    answer = await post_job(
        client, {"task": "t.strict", "payload": {"url": "https://example.org/"}}
    )
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/json"
    assert "preference-applied" not in answer.headers
    assert "idempotent-replayed" not in answer.headers
    assert list(job) == JOB_FIELDS
    assert (job["state"], job["done"], job["attempt"], job["attempts"]) == ("queued", False, 0, [])
    # These are the defaults of the task.
    assert (job["queue"], job["priority"], job["timeout"], job["max_attempts"]) == (
        "slow",
        "low",
        60,
        5,
    )
    assert (await client.get(answer.headers["location"])).json() == job


async def test_options_override_the_defaults_of_the_task_field_by_field(
    client: httpx2.AsyncClient, worker: FakeWorker
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
    view = (await post_job(client, job, traceparent=f"00-{'a' * 32}-{'b' * 16}-01")).json()
    assert (view["queue"], view["priority"], view["timeout"], view["tags"]) == (
        "default",
        "high",
        120,
        {"customer": "17"},
    )
    options = (await worker.record(view["id"])).options
    assert options.retry == {"max_attempts": 5, "base": 0.25, "cap": 300.0}
    assert options.traceparent == f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.mark.parametrize(
    "options", [None, {}, {"queue": None, "retry": None, "tags": None, "timeout": None}]
)
async def test_a_null_option_counts_as_omitted(client: httpx2.AsyncClient, options: Any) -> None:
    answer = await post_job(client, {"task": "t.any", "payload": {}, "options": options})
    assert answer.status_code == 202
    assert (answer.json()["queue"], answer.json()["timeout"]) == ("default", 30)


async def test_a_payload_may_be_omitted_if_no_field_is_required(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    await submit_job(client, {"task": "t.any"})
    assert (await worker.claim()).payload == b"{}"


async def test_the_payload_passes_through_byte_for_byte(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    payload = b'{"big": 123456789012345678901234567890, "exact": 0.10, "text": "\\u00e4\xc3\xa4" }'
    body = b'{"payload" : ' + payload + b' , "task":"t.any"}'
    answer = await client.post(
        "/v1/jobs", content=body, headers={"content-type": "application/json; charset=UTF-8"}
    )
    assert answer.status_code == 202
    assert (await worker.claim()).payload == payload
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
async def test_every_spelling_of_the_json_content_type_is_accepted(
    client: httpx2.AsyncClient, content_type: str
) -> None:
    answer = await client.post(
        "/v1/jobs", content=b'{"task":"t.any"}', headers={"content-type": content_type}
    )
    assert answer.status_code == 202


@pytest.mark.parametrize("delay", ["1h", 3600.5, "90m"])
async def test_a_delayed_job_is_scheduled(client: httpx2.AsyncClient, delay: Any) -> None:
    answer = await post_job(client, {"task": "t.any", "options": {"delay": delay}})
    job = answer.json()
    assert (job["state"], job["scheduled_for"] > job["submitted_at"]) == ("scheduled", True)
    assert (await client.get(answer.headers["location"])).json() == job


async def test_run_at_accepts_any_time_zone(client: httpx2.AsyncClient) -> None:
    moment = datetime.now(UTC).replace(microsecond=250_000) + timedelta(days=2)
    text = moment.astimezone(timezone(timedelta(hours=5, minutes=30))).isoformat()
    answer = await post_job(client, {"task": "t.any", "options": {"run_at": text}})
    job = answer.json()
    shown = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert (job["state"], job["scheduled_for"]) == ("scheduled", shown)
    assert (await client.get(answer.headers["location"])).json() == job


async def test_a_run_at_in_the_past_starts_now(client: httpx2.AsyncClient) -> None:
    job = (
        await post_job(client, {"task": "t.any", "options": {"run_at": "2001-01-01T00:00:00Z"}})
    ).json()
    assert (job["state"], job["scheduled_for"]) == ("queued", None)


@pytest.mark.parametrize(
    "spellings",
    [
        ('"invoice-4711"', "invoice-4711"),
        (r'"a\"b"', 'a"b'),
        ('"a";p=1', "a"),
        ('"a"; p="b;c" ;d', '"a"'),
    ],
)
async def test_a_repeated_key_returns_the_first_job(
    client: httpx2.AsyncClient, worker: FakeWorker, spellings: tuple[str, str]
) -> None:
    job = {"task": "t.any", "payload": {"a": 1, "b": 2}}
    first = await post_job(client, job, **{"Idempotency-Key": spellings[0]})
    claimed = await worker.claim()
    await worker.succeed(claimed, 7)
    # Another spelling and other options still match the first job.
    again = await client.post(
        "/v1/jobs",
        content=b'{"payload":{"b":2, "a":1},"task":"t.any","options":{"priority":"high"}}',
        headers={"Idempotency-Key": spellings[1], "Content-Type": "application/json"},
    )
    assert again.status_code == 202
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert (again.json()["state"], again.json()["result"]) == ("succeeded", 7)
    waited = await post_job(client, job, **{"Idempotency-Key": spellings[1], "Prefer": "wait=1"})
    assert (waited.status_code, waited.headers["idempotent-replayed"]) == (200, "true")
    assert "retry-after" not in waited.headers


async def test_a_key_reused_for_another_payload_is_refused(client: httpx2.AsyncClient) -> None:
    await post_job(client, {"task": "t.any", "payload": {"a": 1}}, **{"Idempotency-Key": "k"})
    answer = await post_job(
        client, {"task": "t.any", "payload": {"a": 2}}, **{"Idempotency-Key": "k"}
    )
    assert problem(answer)[0] == 422
    assert answer.json()["type"].endswith("/idempotency-key-reused")


async def test_concurrent_requests_with_one_key_create_one_job(client: httpx2.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(post_job(client, None, **{"Idempotency-Key": "both"}) for _ in range(8))
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sorted(answer.headers.get("idempotent-replayed", "") for answer in answers) == [
        "",
        *["true"] * 7,
    ]


@pytest.mark.parametrize("key", ['"open', '""', "x" * 256, '"a" b'])
async def test_an_invalid_key_is_malformed(client: httpx2.AsyncClient, key: str) -> None:
    assert problem(await post_job(client, None, **{"Idempotency-Key": key}))[0] == 400


async def test_a_job_that_ends_within_the_wait_is_returned_with_its_result(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    waiting = asyncio.create_task(post_job(client, None, Prefer="respond-async, wait=20"))
    claimed = await eventually(take_when_due(worker))
    await worker.succeed(claimed, {"x": 1})
    answer = await waiting
    assert answer.status_code == 200
    assert answer.headers["preference-applied"] == "wait=20"
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    assert (answer.json()["done"], answer.json()["result"]) == (True, {"x": 1})


def take_when_due(worker: FakeWorker) -> Any:
    async def take() -> Any:
        try:
            return await worker.claim()
        except ValueError:  # no job is due yet
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
async def test_a_job_that_outlasts_the_wait_is_accepted(
    client: httpx2.AsyncClient, prefer: str, applied: str | None
) -> None:
    answer = await post_job(client, None, Prefer=prefer)
    assert (answer.status_code, answer.headers.get("preference-applied")) == (202, applied)
    assert answer.headers["retry-after"] == "1"


async def test_a_wait_is_capped_at_thirty_seconds(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    waiting = asyncio.create_task(post_job(client, None, Prefer="wait=86400"))
    await worker.succeed(await eventually(take_when_due(worker)))
    assert (await waiting).headers["preference-applied"] == "wait=30"
