"""Mistakes that are often made are answered with what to do instead."""

from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

from tandem_worker.loader import load_tasks
from tests.api.fake_worker import FakeWorker
from tests.api.serving import problem, serving

URL = "https://example.org/"


async def errors(client: httpx2.AsyncClient, body: Any) -> dict[str, str]:
    """What is wrong with a job: a sentence for each pointer."""
    answer = await client.post("/v1/jobs", json=body)
    assert problem(answer)[0] == 422
    return {one["pointer"]: one["detail"] for one in answer.json()["errors"]}


@pytest.mark.parametrize(
    ("job", "pointer", "sentence"),
    [
        ({"task": "t.strct"}, "/task", "did you mean 't.strict'?"),
        (
            {"task": "t.any", "queue": "x"},
            "/queue",
            'belongs into options: {"options": {"queue": …}}',
        ),
        ({"task": "t.any", "payloda": 1}, "/payloda", "did you mean 'payload'?"),
        ({"task": "t.any", "options": {"timout": 1}}, "/options/timout", "did you mean 'timeout'?"),
        (
            {"task": "t.any", "options": {"retry": {"max_attempt": 1}}},
            "/options/retry/max_attempt",
            "did you mean 'max_attempts'?",
        ),
        (
            {"task": "t.strict", "payload": {"url": URL, "methdo": "GET"}},
            "/payload/methdo",
            "did you mean 'method'?",
        ),
        (
            {"task": "t.any", "options": {"queue": "a b"}},
            "/options/queue",
            "must be up to 64 letters, digits, '.', '_' and '-'",
        ),
    ],
)
async def test_a_mistake_that_is_often_made_gets_a_hint(
    client: httpx2.AsyncClient, job: dict[str, Any], pointer: str, sentence: str
) -> None:
    found = await errors(client, job)
    assert list(found) == [pointer]
    assert found[pointer].endswith(sentence)


@pytest.mark.parametrize("task", ["nothing.like.it", "t", "", "x" * 200])
async def test_a_task_unlike_all_others_gets_no_hint(client: httpx2.AsyncClient, task: str) -> None:
    assert "did you mean" not in (await errors(client, {"task": task}))["/task"]


async def test_built_in_tasks_explain_their_patterns(
    client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    await worker.publish(*(one.entry for one in load_tasks(()).values()))
    for task, payload, pointer in (
        ("http.request", {"url": "example.com"}, "/payload/url"),
        ("http.gather", {"requests": [{"url": "example.com"}]}, "/payload/requests/0/url"),
        ("email.send", {"to": "me", "subject": "s", "text": "t"}, "/payload/to"),
    ):
        found = await errors(client, {"task": task, "payload": payload})
        assert list(found) == [pointer]
        assert "example.org" in found[pointer]
        assert "^" not in found[pointer]


async def test_without_any_worker_yet_jobs_are_refused_for_now(
    redis_url: str, redis: Redis, tmp_path: Path
) -> None:
    assert await redis.dbsize() == 0
    async with serving(redis_url, tmp_path) as client:
        for path, body in (("/v1/jobs", {"task": "t.any"}), ("/v1/jobs/bulk", [{"task": "t.any"}])):
            answer = await client.post(path, json=body)
            assert problem(answer)[0] == 503
            assert "no worker" in answer.json()["detail"]
            assert answer.headers["retry-after"] == "1"
        assert problem(await client.get("/v1/tasks/t.any"))[0] == 404
