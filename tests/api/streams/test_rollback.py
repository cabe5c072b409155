"""Readers of a stream whose last entries Redis has lost."""

import httpx2
from redis.asyncio import Redis

from tests.api.fake_worker import FakeWorker
from tests.api.streams.test_http import read_stream, start_job
from tests.shared.queue.model.rollback import copy_keys, roll_back


async def test_a_reader_whose_last_entry_redis_has_lost_goes_on(
    client: httpx2.AsyncClient, worker: FakeWorker, redis: Redis
) -> None:
    claimed = await start_job(client, worker)
    await worker.report(claimed, "output", 1)
    copy = await copy_keys(redis, worker.queue.prefix)
    await worker.report(claimed, "output", 2)
    last = (await worker.queue.output(claimed.id))[-1].stamp
    await roll_back(redis, worker.queue.prefix, copy)
    worker._reports[claimed.token] -= 1
    await worker.report(claimed, "output", 3)
    await worker.succeed(claimed)
    left = await read_stream(client, claimed.id, after=f"{last:016d}-00000")
    assert [entry["data"] for entry in left if entry["type"] == "output"] == [3]
    assert left[-1]["type"] == "end"
