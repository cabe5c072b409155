"""Every refusal is an RFC 9457 problem that names the field and the reason, never a 500."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from tests.api.fake_worker import ANY, FakeWorker
from tests.api.serving import problem, serving

JSON = {"content-type": "application/json"}
URL = "https://example.org/"
DURATION = "is not a duration; use a number of seconds, or 250ms, 30s, 5m, 2h, 7d"


async def post(client: httpx2.AsyncClient, body: Any, **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return await client.post("/v1/jobs", content=content, headers={**JSON, **headers})


def errors(answer: httpx2.Response) -> dict[str, str]:
    """The errors of a 422: JSON pointer → sentence."""
    assert problem(answer)[0] == 422, answer.text
    return {one["pointer"]: one["detail"] for one in answer.json()["errors"]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"task": "t.any",}',
        b'{"task": "t.any"} x',
        b'{"task": "\xff"}',
        b'{"task": "t.any", "payload": {"a": NaN}}',
        b'{"task": "t.any", "payload": {"a": Infinity}}',
        b'{"task": "t.any", "payload": {"a": 1e999}}',
        b'{"task": "t.any", "payload": {"a": "\\ud800"}}',
        b'{"task": "t.any", "payload": {"a": "\x00"}}',
        b'\xef\xbb\xbf{"task": "t.any"}',
    ],
    ids=repr,
)
async def test_invalid_json_is_malformed(client: httpx2.AsyncClient, body: bytes) -> None:
    answer = await post(client, body)
    assert problem(answer)[0] == 400
    assert answer.json() == {
        "type": "/problems/malformed",
        "title": "The request is malformed",
        "status": 400,
        "detail": answer.json()["detail"],
        "instance": "/v1/jobs",
    }


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json; odata=verbose; charset=utf-16"},
        {"content-encoding": "gzip"},
    ],
    ids=str,
)
async def test_other_content_types_and_encodings_are_not_supported(
    client: httpx2.AsyncClient, headers: dict[str, str]
) -> None:
    assert problem(await post(client, {"task": "t.any"}, **headers))[0] == 415
    assert (
        problem(await client.post("/v1/jobs/bulk", content=b"[]", headers={**JSON, **headers}))[0]
        == 415
    )


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ([], {"": "must be a JSON object"}),
        ({}, {"/task": "is required"}),
        ({"task": 7}, {"/task": "must be a string"}),
        ({"task": "x" * 201}, {"/task": "must have at most 200 characters"}),
        ({"task": "t.strict"}, {"/payload/url": "is required"}),
        ({"task": "t.strict", "payload": {}}, {"/payload/url": "is required"}),
        ({"task": "t.strict", "payload": None}, {"/payload": "must be an object"}),
        ({"task": "t.strict", "payload": {"url": 5}}, {"/payload/url": "must be a string"}),
        (
            {"task": "t.strict", "payload": {"url": "ab"}},
            {"/payload/url": "must have at least 3 characters"},
        ),
        (
            {"task": "t.strict", "payload": {"url": URL, "a/b~": 1}},
            {"/payload/a~1b~0": "is not a known field"},
        ),
        (
            {"task": "t.strict", "payload": {"url": URL, "size": 0}},
            {"/payload/size": "must be at least 1"},
        ),
        (
            {"task": "t.strict", "payload": {"url": URL, "size": "x"}},
            {"/payload/size": "must be an integer"},
        ),
        (
            {"task": "t.strict", "payload": {"url": URL, "method": "X"}},
            {"/payload/method": "must be one of GET, POST"},
        ),
        (
            {
                "task": "t.strict",
                "payload": {"url": URL, "node": {"next": {"next": {"value": "x"}}}},
            },
            {"/payload/node/next/next/value": "must be an integer"},
        ),
        (
            {"task": "t.any", "foo": 1, "bar": 2},
            {"/foo": "is not a known field", "/bar": "is not a known field"},
        ),
        (
            {"task": "t.any", "idempotency_key": "k"},
            {"/idempotency_key": "is not a known field: send the header Idempotency-Key"},
        ),
        ({"task": "t.any", "options": []}, {"/options": "must be an object"}),
        ({"task": "t.any", "options": {"foo": 1}}, {"/options/foo": "is not a known field"}),
        (
            {"task": "t.any", "options": {"timeout": "abc"}},
            {"/options/timeout": f"'abc' {DURATION}"},
        ),
        ({"task": "t.any", "options": {"timeout": True}}, {"/options/timeout": f"True {DURATION}"}),
        (
            {"task": "t.any", "options": {"delay": -1}},
            {"/options/delay": "a duration must be finite and not negative, not -1"},
        ),
        (
            {"task": "t.any", "options": {"timeout": 0}},
            {"/options/timeout": "must be more than 0 and at most 24h"},
        ),
        (
            {"task": "t.any", "options": {"timeout": "25h"}},
            {"/options/timeout": "must be more than 0 and at most 24h"},
        ),
        (
            {"task": "t.any", "options": {"delay": 1e300}},
            {"/options/delay": "must be at most 3650d"},
        ),
        (
            {"task": "t.any", "options": {"expires_in": "9999d"}},
            {"/options/expires_in": "must be at most 3650d"},
        ),
        (
            {"task": "t.any", "options": {"retry": {"cap": 1e300}}},
            {"/options/retry/cap": "must be at most 3650d"},
        ),
        (
            {"task": "t.any", "options": {"retry": {"base": "x"}}},
            {"/options/retry/base": f"'x' {DURATION}"},
        ),
        (
            {"task": "t.any", "options": {"retry": {"max_attempts": 0}}},
            {"/options/retry/max_attempts": "must be at least 1"},
        ),
        (
            {"task": "t.any", "options": {"retry": {"x": 0}}},
            {"/options/retry/x": "is not a known field"},
        ),
        (
            {"task": "t.any", "options": {"priority": "urgent"}},
            {"/options/priority": "must be one of high, normal, low"},
        ),
        (
            {"task": "t.any", "options": {"concurrency_limit": 2}},
            {"/options/concurrency_limit": "needs a concurrency_key"},
        ),
        (
            {"task": "t.any", "options": {"concurrency_key": "k", "concurrency_limit": 0}},
            {"/options/concurrency_limit": "must be at least 1"},
        ),
        (
            {"task": "t.any", "options": {"concurrency_key": "k" * 256}},
            {"/options/concurrency_key": "must have at most 255 characters"},
        ),
        ({"task": "t.any", "options": {"tags": {"a": 1}}}, {"/options/tags/a": "must be a string"}),
        (
            {"task": "t.any", "options": {"tags": {"k" * 65: "v"}}},
            {"/options/tags": "has a field whose name must have at most 64 characters"},
        ),
        (
            {"task": "t.any", "options": {"tags": {str(n): "" for n in range(51)}}},
            {"/options/tags": "must have at most 50 fields"},
        ),
        (
            {"task": "t.any", "options": {"run_at": "2030-01-01T00:00:00Z", "delay": 5}},
            {"/options/run_at": "give either delay or run_at"},
        ),
        (
            {"task": "t.any", "options": {"callback": {"url": URL}}},
            {"/options/callback": "callbacks are not available yet"},
        ),
    ],
    ids=lambda value: str(value)[:80],
)
async def test_a_schema_error_points_to_the_field(
    client: httpx2.AsyncClient, job: Any, expected: dict[str, str]
) -> None:
    answer = await post(client, job)
    assert errors(answer) == expected
    assert answer.json()["type"] == "/problems/validation"


@pytest.mark.parametrize("place", ["payload", "payload/node"])
async def test_a_failed_rule_is_explained_by_its_description(
    client: httpx2.AsyncClient, worker: FakeWorker, place: str
) -> None:
    rule = {"not": {"required": ["x", "y"]}, "description": "give one of x and y"}
    schema = {
        "properties": {"node": {"$ref": "#/$defs/Node"}},
        "allOf": [rule],
        "$defs": {"Node": {"allOf": [rule]}},
    }
    await worker.publish(msgspec.structs.replace(ANY, name="t.rule", payload_schema=schema))
    both = {"x": 1, "y": 2}
    answer = await post(
        client, {"task": "t.rule", "payload": both if place == "payload" else {"node": both}}
    )
    assert errors(answer) == {f"/{place}": "give one of x and y"}


async def test_an_error_without_a_field_becomes_the_detail(client: httpx2.AsyncClient) -> None:
    assert problem(await post(client, [])) == (422, "must be a JSON object")
    assert problem(await client.post("/v1/jobs/bulk", json={})) == (
        422,
        "must be a JSON array of jobs",
    )
    form = {"name": (None, "value")}
    detail = "the form has no file: send one part with a filename"
    assert problem(await client.post("/v1/files", files=form)) == (422, detail)


async def test_only_declared_queues_are_accepted(
    redis_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    async with serving(redis_url, tmp_path, queues_allowed="mail-*,default") as client:
        for name, status in {"mail-eu": 202, "default": 202, "mail": 422, "other": 422}.items():
            answer = await post(client, {"task": "t.any", "options": {"queue": name}})
            assert answer.status_code == status, name
            if status == 422:
                assert list(errors(answer)) == ["/options/queue"]
        # A task's own queue needs no declaration.
        body = {"task": "t.strict", "payload": {"url": "abc"}}
        assert (await post(client, body)).json()["queue"] == "slow"


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 65, "a/b"])
async def test_an_invalid_queue_name_is_refused(client: httpx2.AsyncClient, name: str) -> None:
    assert list(errors(await post(client, {"task": "t.any", "options": {"queue": name}}))) == [
        "/options/queue"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "tomorrow",
        "2030-01-01",
        "2030-01-01T00:00:00",
        "2030-13-01T00:00:00Z",
        "20300101T000000Z",
        "9999-12-31T23:59:59Z",
    ],
)
async def test_an_invalid_time_or_missing_zone_is_refused(
    client: httpx2.AsyncClient, text: str
) -> None:
    assert list(errors(await post(client, {"task": "t.any", "options": {"run_at": text}}))) == [
        "/options/run_at"
    ]


async def test_errors_are_reported_together_up_to_a_limit(client: httpx2.AsyncClient) -> None:
    job = {
        "task": "t.strict",
        "payload": {"zip": 1},
        "options": {"foo": 1, "timeout": "x"},
        "bar": 2,
    }
    found = errors(await post(client, job))
    assert set(found) == {
        "/payload/url",
        "/payload/zip",
        "/options/foo",
        "/options/timeout",
        "/bar",
    }
    many = {"task": "t.any", **{f"x{n}": 1 for n in range(500)}}
    assert len(errors(await post(client, many))) == 20
    large = {"task": "t.strict", "payload": {"url": URL, **{f"x{n}": 1 for n in range(50_000)}}}
    assert (
        len(errors(await post(client, large))) == 1
    )  # only the first: collecting all of them would take too long


async def test_an_unknown_task_has_its_own_problem_type(client: httpx2.AsyncClient) -> None:
    answer = await post(client, {"task": "t.nope", "payload": {}})
    assert list(errors(answer)) == ["/task"]
    assert answer.json()["type"] == "/problems/unknown-task"


@pytest.mark.parametrize("depth", [64, 65, 500, 5000])
async def test_json_is_nested_at_most_64_levels_deep(
    client: httpx2.AsyncClient, depth: int
) -> None:
    inner = depth - 2  # the job and the payload take two levels
    body = b'{"task":"t.any","payload":{"a":' + b"[" * inner + b"]" * inner + b"}}"
    answer = await post(client, body)
    if depth == 64:
        assert answer.status_code == 202
    else:
        assert errors(answer) == {"": "is nested more than 64 levels deep"}


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_body_above_one_mebibyte_is_too_large(
    client: httpx2.AsyncClient, *, streamed: bool
) -> None:
    body = msgspec.json.encode({"task": "t.any", "payload": {"a": "x" * (2 << 20)}})

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    answer = await client.post("/v1/jobs", content=pieces() if streamed else body, headers=JSON)
    assert problem(answer) == (413, "the body exceeds the limit of 1048576 bytes")


async def test_a_body_of_one_mebibyte_is_accepted(client: httpx2.AsyncClient) -> None:
    body = msgspec.json.encode({"task": "t.any", "payload": {"a": ""}})
    body = body.replace(b'""', b'"' + b"x" * ((1 << 20) - len(body)) + b'"')
    assert len(body) == 1 << 20
    assert (await post(client, body)).status_code == 202


@pytest.mark.parametrize("place", ["timeout", "delay", "expires_in", "retry/base", "retry/cap"])
async def test_a_number_beyond_any_duration_is_refused(
    client: httpx2.AsyncClient, place: str
) -> None:
    options: Any = b"1" * 400
    for name in reversed(place.split("/")):
        options = b'{"%s": %s}' % (name.encode(), options)
    found = errors(await post(client, b'{"task": "t.any", "options": %s}' % options))
    assert list(found) == [f"/options/{place}"]
    assert "finite" in found[f"/options/{place}"]
