"""Jobs that Redis has lost, though the ledger has them: they end, and whoever waits is told so."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2
import msgspec
import pytest
from redis.asyncio import Redis

from tandem_shared.dev.servers import redis_server
from tandem_shared.errors import Unavailable
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.states import State
from tandem_shared.ledger.lost import LostJobs
from tandem_shared.queue.queue import Queue
from tests.api.fake_worker import ANY, STRICT, FakeWorker
from tests.api.jobs.test_listing import Follower, follower, submit
from tests.api.serving import serving
from tests.conftest import eventually, started
from tests.shared.queue.model.rollback import copy_keys, roll_back

__all__ = ["follower"]


@asynccontextmanager
async def rolled_back(redis: Redis, queue: Queue, follower: Follower) -> AsyncIterator[None]:
    """Redis loses what it accepts within this block, and the ledger keeps what it projects."""
    await follower.follow()
    copy = await copy_keys(redis, queue.prefix)
    yield
    await follower.follow()
    await roll_back(redis, queue.prefix, copy)


async def test_a_lost_job_ends_for_everyone_who_asks(
    client: httpx2.AsyncClient, redis: Redis, queue: Queue, follower: Follower
) -> None:
    await submit(client)
    async with rolled_back(redis, queue, follower):
        id = await submit(client, delay="1h")
        other = await submit(client, delay="1h")
    path = f"/v1/jobs/{id}"
    # Another process may still repeat the submission, so nothing is said of the job at first.
    answer = await client.get(path, params={"wait": 3})
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)

    async def ended() -> httpx2.Response | None:
        answer = await client.get(path, params={"wait": 30})
        assert answer.status_code in (200, 503)
        return answer if answer.status_code == 200 else None

    found = await eventually(ended, 30)
    assert found is not None
    job = found.json()
    assert (job["state"], job["error"]["type"]) == ("failed", "record_lost")
    stream = await client.get(f"{path}/stream", headers={"accept": "application/x-ndjson"})
    assert [msgspec.json.decode(line)["type"] for line in stream.content.splitlines()][-1] == "end"
    listed = (await client.get("/v1/jobs", params={"state": "failed"})).json()["items"]
    assert [one["id"] for one in listed] == [id]
    assert (await client.post(f"{path}/cancel")).json()["state"] == "failed"
    assert (await client.delete(path)).status_code == 204
    assert (await client.get(path)).status_code == 404
    assert (await client.get(f"/v1/jobs/{other}")).status_code == 503


async def test_a_stream_ends_when_its_job_is_lost(
    client: httpx2.AsyncClient, redis: Redis, queue: Queue, follower: Follower
) -> None:
    lines: list[bytes] = []

    async def read(id: str) -> None:
        accept = {"accept": "application/x-ndjson"}
        async with client.stream("GET", f"/v1/jobs/{id}/stream", headers=accept) as answer:
            lines.extend([line.encode() async for line in answer.aiter_lines() if line])

    async with rolled_back(redis, queue, follower):
        reading = asyncio.create_task(read(await submit(client, delay="1h")))
        await eventually(lambda: redis.pubsub_channels(f"{queue.prefix}news:*"))
    async with asyncio.timeout(60):
        await reading
    last = msgspec.json.decode(lines[-1])
    assert (last["type"], last["data"]["error"]["type"]) == ("end", "record_lost")


async def test_lost_jobs_end_although_nobody_asks(
    client: httpx2.AsyncClient, redis: Redis, queue: Queue, follower: Follower, worker: FakeWorker
) -> None:
    kept = await submit(client)
    async with rolled_back(redis, queue, follower):
        lost = await submit(client, delay="1h")
    lost_jobs = LostJobs(follower.ledger, queue, seconds=0)
    assert await lost_jobs.sweep() == 0  # its row is too young
    long_ago = int((time.time() - 3600) * 1e6)
    await follower.ledger.database.write([("UPDATE tandem_jobs SET stamp = ?", [(long_ago,)])])
    assert await lost_jobs.sweep() == 1
    record = await follower.ledger.get(lost, tenant="default")
    assert record is not None
    assert record.state is State.FAILED
    assert (await client.get(f"/v1/jobs/{kept}")).json()["state"] == "queued"


async def test_a_redis_without_a_ledger_ends_no_job(
    client: httpx2.AsyncClient, redis: Redis, queue: Queue, follower: Follower
) -> None:
    id = await submit(client)
    await follower.follow()
    row = await follower.ledger.get(id, tenant="default")
    assert row is not None
    keys = [key async for key in redis.scan_iter(f"{queue.prefix}*")]
    await redis.delete(*keys)
    lost = LostJobs(follower.ledger, queue, seconds=0)
    for _ in range(3):
        with pytest.raises(Unavailable):
            await lost.settle(row)
    assert await follower.ledger.get(id, tenant="default") == row


async def test_no_job_is_unknown_while_it_may_be_submitted_again(tmp_path: Path) -> None:
    server = redis_server(tmp_path)
    async with AsyncExitStack() as stack:
        with started(server) as process:
            await eventually(server.ready)
            accepting, asked = [
                await stack.enter_async_context(serving(server.url, tmp_path)) for _ in range(2)
            ]
            redis = await stack.enter_async_context(Redis.from_url(server.url))
            queue = Queue(redis)
            stack.push_async_callback(queue.close)
            await FakeWorker(queue).publish(ANY, STRICT)
            path = f"/v1/jobs/{await submit(accepting)}"
            assert (await asked.get(path)).status_code == 200
            process.kill()
            process.wait()
        shutil.rmtree(tmp_path / "appendonlydir", ignore_errors=True)
        (tmp_path / "appendonly.aof").unlink(missing_ok=True)
        stack.enter_context(started(server))
        await eventually(server.ready)
        details = []

        async def status_of(path: str) -> int:
            answer = await asked.get(path)
            details.append(answer.json().get("detail", ""))
            return answer.status_code

        async def found() -> bool:
            status = await status_of(path)
            assert status in (200, 503)
            return status == 200

        async def unknown() -> bool:
            return await status_of(f"/v1/jobs/{new_id()}") == 404

        await eventually(unknown, 30)
        assert any("submitted to it again" in detail for detail in details)
        await eventually(found, 30)
