"""What goes through all of Tandem: a POST that waits, output to a client, rows to the ledger; the API's memory."""

import asyncio
import statistics
from collections.abc import AsyncIterator
from time import perf_counter

import msgspec

from bench.figures import OURS, Figure
from bench.peers.driver import PAYLOAD
from bench.peers.tandem import OPTIONS
from bench.processes import Broken, open_service
from bench.stream import read
from bench.tasks import Flood
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import Submission

ITEM = 200  # bytes
ITEMS = 100_000  # for each second
RUNNING = 1000
JOBS = 10_000  # rows for each second


async def output(seconds: float) -> AsyncIterator[Figure]:
    """Item 9: small items from `job.emit` to a client that reads NDJSON."""
    wanted = Flood(items=int(ITEMS * seconds), size=ITEM)
    async with open_service() as service:
        body = {"task": "bench.flood", "payload": wanted.model_dump()}
        began = perf_counter()
        async with service.client.post("/v1/jobs", json=body) as answer:
            made = await answer.json()
        _, count, _, _ = await read(service.port, f"/v1/jobs/{made['id']}/stream?types=output")
        spent = perf_counter() - began
    if count != wanted.items:
        raise Broken(f"{count} of {wanted.items} items")
    yield Figure(f"emit, items of {ITEM} bytes, task to client", "items/s", OURS, count / spent)


async def latency(seconds: float) -> AsyncIterator[Figure]:
    """Item 3: a POST that waits for the result, one after the other over one connection."""
    body = {"task": "bench.noop", "payload": PAYLOAD}
    async with open_service() as service:

        async def once() -> float:
            began = perf_counter()
            async with service.client.post(
                "/v1/jobs", json=body, headers={"Prefer": "wait=5"}
            ) as answer:
                made = await answer.json()
            if made.get("state") != "succeeded":
                raise Broken(f"POST /v1/jobs answered {answer.status}: {made}")
            return 1000 * (perf_counter() - began)

        for _ in range(20):
            await once()
        times = [await once() for _ in range(max(50, int(seconds * 60)))]
    yield Figure("POST with Prefer: wait, idle, median", "ms", OURS, statistics.median(times))
    yield Figure(
        "POST with Prefer: wait, idle, 99th percentile",
        "ms",
        OURS,
        statistics.quantiles(times, n=100)[98],
    )


async def rows(seconds: float) -> AsyncIterator[Figure]:
    """Item 10: rows that a worker writes to SQLite while it has nothing else to do: jobs for later."""
    count = int(JOBS * seconds)
    async with open_service() as service:
        await service.worker.until(service.recorded)
        jobs = [
            Submission(id=new_id(), task="bench.noop", payload=b"{}", options=OPTIONS, delay=3600.0)
            for _ in range(count)
        ]
        began = perf_counter()
        await service.queue.submit_many(jobs)
        await service.worker.until(service.recorded)
        spent = perf_counter() - began
        async with service.client.get("/v1/jobs?state=scheduled&limit=1") as answer:
            if not msgspec.json.decode(await answer.read())["items"]:
                raise Broken("the ledger has no row")
    yield Figure("ledger, one worker that runs nothing, SQLite", "rows/s", OURS, count / spent)


async def memory(seconds: float) -> AsyncIterator[Figure]:
    """Item 8: the API's memory, and the worker's beside it."""
    async with open_service(TANDEM_CONCURRENCY=str(RUNNING)) as service:
        yield Figure("API, idle", "MiB", OURS, service.api.rss())
        body = msgspec.json.encode(
            [{"task": "bench.sleep", "payload": {"seconds": 60}, "options": {"timeout": 90}}]
            * RUNNING
        )
        headers = {"Content-Type": "application/json"}
        async with service.client.post("/v1/jobs/bulk", data=body, headers=headers) as answer:
            answer.raise_for_status()

        async def running() -> bool:
            return sum(one.running for one in await service.queue.stats()) == RUNNING

        await service.worker.until(running)
        await asyncio.sleep(seconds)
        yield Figure(f"API, {RUNNING:,} jobs running", "MiB", OURS, service.api.rss())
