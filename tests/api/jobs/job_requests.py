"""Submits one job over HTTP, for tests that look at the answer or need only the id."""

from typing import Any

import httpx2


async def post_job(
    client: httpx2.AsyncClient, job: dict[str, Any] | None = None, **headers: str
) -> httpx2.Response:
    return await client.post(
        "/v1/jobs", json=job or {"task": "t.any", "payload": {}}, headers=headers
    )


async def submit_job(client: httpx2.AsyncClient, job: dict[str, Any] | None = None) -> str:
    answer = await post_job(client, job)
    assert answer.status_code == 202, answer.text
    id: str = answer.json()["id"]
    return id
