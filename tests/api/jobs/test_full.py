"""A backlog that is full: 503 for what is new, while everything else is served."""

from pathlib import Path

import httpx2
import msgspec
from redis.asyncio import Redis

from tests.api.fake_worker import Hand
from tests.api.serving import problem, serving
from tests.conftest import eventually

JOB = {"task": "t.any", "payload": {}}


async def test_a_full_queue_says_when_to_come_back(
    redis_url: str, hand: Hand, tmp_path: Path
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
        await hand.succeed(await hand.take())
        assert (await client.post("/v1/jobs", json=JOB)).status_code == 202


async def test_a_redis_without_memory_is_survived(
    redis: Redis, client: httpx2.AsyncClient, hand: Hand
) -> None:
    used = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", used + (2 << 20))
    try:
        body = msgspec.json.encode({**JOB, "payload": {"x": "x" * 50_000}})
        accepted = []
        while (answer := await client.post("/v1/jobs", content=body)).status_code == 202:
            accepted.append(answer.json()["id"])
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert (
            await client.get("/readyz")
        ).status_code == 200  # what is known is served, and may be cancelled
        assert (await client.post(f"/v1/jobs/{accepted.pop()}/cancel")).status_code == 202
        assert (await client.get(f"/v1/jobs/{accepted[0]}")).json()["state"] == "queued"
        while accepted:
            await hand.succeed(one := await hand.take(1))
            accepted.remove(one.id)
        # They are final, and kept: what gives memory back is time, or an operator.
        await redis.config_set("maxmemory", (await redis.info("memory"))["used_memory"] * 2)

        async def accepts() -> bool:
            return (await client.post("/v1/jobs", content=body)).status_code == 202

        assert await eventually(accepts)
    finally:
        await redis.config_set("maxmemory", 0)
