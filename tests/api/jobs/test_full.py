"""A full backlog answers new jobs with 503 and serves every other request."""

from pathlib import Path

import httpx2
import msgspec
from redis.asyncio import Redis

from tests.api.fake_worker import FakeWorker
from tests.api.serving import problem, serving
from tests.conftest import eventually

TYPED = {"content-type": "application/json"}
JOB = {"task": "t.any", "payload": {}}


async def test_a_full_queue_answers_with_retry_after(
    redis_url: str, worker: FakeWorker, tmp_path: Path
) -> None:
    async with serving(redis_url, tmp_path, max_backlog=1) as client:
        first = await client.post("/v1/jobs", json=JOB)
        assert first.status_code == 202
        answer = await client.post("/v1/jobs", json=JOB)
        assert problem(answer) == (
            503,
            "the queue 'default' holds its maximum of unfinished jobs",
        )
        assert answer.json()["type"] == "/problems/backlog-full"
        assert int(answer.headers["retry-after"]) > 0
        refused, accepted = (
            await client.post("/v1/jobs/bulk", json=[JOB, {**JOB, "options": {"queue": "b"}}])
        ).json()
        assert refused["error"]["type"] == "/problems/backlog-full"
        assert accepted["id"]
        await worker.succeed(await worker.claim())
        assert (await client.post("/v1/jobs", json=JOB)).status_code == 202


async def test_the_api_survives_a_redis_out_of_memory(
    redis: Redis, client: httpx2.AsyncClient, worker: FakeWorker
) -> None:
    used = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", used + (2 << 20))
    try:
        body = msgspec.json.encode({**JOB, "payload": {"x": "x" * 50_000}})
        accepted = []
        while (
            answer := await client.post("/v1/jobs", content=body, headers=TYPED)
        ).status_code == 202:
            accepted.append(answer.json()["id"])
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert (
            await client.get("/readyz")
        ).status_code == 200  # known jobs are still served, and can be cancelled
        assert (await client.post(f"/v1/jobs/{accepted.pop()}/cancel")).status_code == 202
        assert (await client.get(f"/v1/jobs/{accepted[0]}")).json()["state"] == "queued"
        while accepted:
            await worker.succeed(one := await worker.claim(1))
            accepted.remove(one.id)
        # Final jobs are kept: memory is freed by expiry or by an operator.
        await redis.config_set("maxmemory", (await redis.info("memory"))["used_memory"] * 2)

        async def accepts() -> bool:
            return (await client.post("/v1/jobs", content=body, headers=TYPED)).status_code == 202

        assert await eventually(accepts)
    finally:
        await redis.config_set("maxmemory", 0)
