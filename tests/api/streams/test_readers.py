"""Many readers share one Redis read per job, and one limit of open connections."""

import asyncio
import resource
import subprocess
import sys
from functools import partial

import httpx2
from redis.asyncio import Redis

from tests.api.fake_worker import FakeWorker
from tests.api.streams.test_http import NDJSON, start_job
from tests.conftest import eventually

READERS = 30


async def calls(redis: Redis, command: str) -> int:
    stats = await redis.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))


async def test_a_stream_with_many_readers_is_read_once(
    client: httpx2.AsyncClient, worker: FakeWorker, redis: Redis
) -> None:
    job = await start_job(client, worker)
    received: list[int] = [0] * READERS

    async def read(number: int) -> None:
        async with client.stream(
            "GET", f"/v1/jobs/{job.id}/stream?types=output", headers=NDJSON
        ) as answer:
            async for line in answer.aiter_lines():
                received[number] += bool(line)

    def all_heard(count: int) -> bool:
        return received == [count] * READERS

    readers = [asyncio.create_task(read(number)) for number in range(READERS)]
    await worker.report(job, "output", 1)
    await eventually(partial(all_heard, 1))
    before = await calls(redis, "xrange")
    for number in range(2, 5):
        await worker.report(job, "output", number)
        await eventually(partial(all_heard, number))
    assert await calls(redis, "xrange") - before < READERS
    await worker.succeed(job)
    await asyncio.gather(*readers)
    assert received == [5] * READERS


def test_a_low_limit_of_open_files_is_raised_to_the_hard_limit() -> None:
    code = (
        "import resource; from tandem_api.server.sockets import allow_connections;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, 700)); allow_connections();"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 700
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert completed.stdout.split() == ["700", "700"]
