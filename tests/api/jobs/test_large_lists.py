"""Lists of large jobs: what a call reads from Redis and answers is bounded in bytes."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis

from tandem_shared import catalogue
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Submission
from tandem_shared.jobs.states import State
from tandem_shared.ledger.ledger import open_ledger
from tandem_shared.ledger.query import JobFilter
from tandem_shared.ledger.rows import row_from_values
from tandem_shared.queue.messages import Finish
from tandem_shared.queue.queue import Queue
from tandem_shared.settings import load_settings
from tests.api.fake_worker import ANY, STRICT, FakeWorker

MIB = 1 << 20


@pytest.fixture
async def finish(queue: Queue, worker: FakeWorker) -> Callable[..., Awaitable[list[str]]]:
    """Submits so many jobs and ends them with results of such a size; returns their ids."""

    async def do(count: int, size: int) -> list[str]:
        options = JobOptions(timeout=30)
        jobs = [
            Submission(id=new_id(), task=ANY.name, payload=b"{}", options=options)
            for _ in range(count)
        ]
        await queue.submit_many(jobs)
        body = b'"%s"' % (b"x" * size)
        for number in range(1, count // 20 + 1):
            claim = await queue.claim(
                "hand-1", number, slots=20, tasks=catalogue.digest([ANY, STRICT]),
                queues=["default"],
            )  # fmt: skip
            await queue.finish(
                [
                    Finish(one.id, one.token, State.SUCCEEDED, "succeeded", body)
                    for one in claim.jobs
                ]
            )
        return sorted((job.id for job in jobs), reverse=True)

    return do


async def sent(redis: Redis) -> int:
    return int((await redis.info("stats"))["total_net_output_bytes"])


async def test_a_page_of_large_jobs_ends_early_and_no_job_is_missing(
    client: httpx2.AsyncClient, redis: Redis, finish: Callable[..., Awaitable[list[str]]]
) -> None:
    ids = await finish(100, 200_000)
    before = await sent(redis)
    answer = await client.get("/v1/jobs", params={"limit": 1})
    assert [one["id"] for one in answer.json()["items"]] == ids[:1]
    assert len(answer.json()["items"][0]["result"]) == 200_000
    assert await sent(redis) - before < MIB

    found: list[str] = []
    query: dict[str, Any] = {"limit": 200}
    while query.get("cursor", "") is not None:
        before = await sent(redis)
        answer = await client.get("/v1/jobs", params=query)
        assert await sent(redis) - before < 3 * MIB
        assert len(answer.content) < 2 * MIB
        assert all(len(one["result"]) == 200_000 for one in answer.json()["items"])
        found += [one["id"] for one in answer.json()["items"]]
        query["cursor"] = answer.json()["next_cursor"]
    assert found == ids


async def test_a_list_reads_little_of_large_events(
    client: httpx2.AsyncClient, redis: Redis, queue: Queue
) -> None:
    lines = "\n".join(f"{new_id()} running 1 1" for _ in range(500))
    for _ in range(1000):
        await redis.xadd(f"{queue.prefix}events", {"e": lines})
    before = await sent(redis)
    assert (await client.get("/v1/jobs")).json()["items"] == []
    assert await sent(redis) - before < MIB


async def test_one_script_reads_about_a_mebibyte(
    queue: Queue, redis: Redis, finish: Callable[..., Awaitable[list[str]]]
) -> None:
    ids = await finish(100, 200_000)
    before = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    records = await queue.get_many(ids)
    calls = (await redis.info("commandstats"))["cmdstat_evalsha"]["calls"] - before
    assert [one and len(one.result or b"") for one in records] == [200_002] * 100
    assert calls >= 100 * 200_000 / (2 * MIB)
    assert len(await queue.get_many(ids, max_bytes=MIB)) < 12


async def test_a_page_of_the_ledger_ends_early_and_no_job_is_missing(
    any_ledger_url: str, queue: Queue, finish: Callable[..., Awaitable[list[str]]]
) -> None:
    ids = await finish(40, 200_000)
    values = []
    for id in ids:
        values += await queue.events.ledger_values([id], max_bytes=MIB)
    async with open_ledger(load_settings(database_url=any_ledger_url)) as ledger:
        await ledger.database.open()
        await ledger.save(
            [row_from_values(id, one) for id, one in zip(ids, values, strict=True) if one]
        )
        for wanted in (JobFilter(), JobFilter(q="t.any")):
            found: list[str] = []
            before: str | None = None
            while True:
                page = await ledger.find(wanted, before=before, limit=200)
                assert sum(len(one.result or b"") for one in page.records) < 2 * MIB
                found += [one.id for one in page.records]
                before = page.next
                if before is None:
                    break
            assert found == ids
