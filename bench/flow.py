"""Through all of Tandem: a POST that waits, output, the ledger, and the API's memory."""

import asyncio
import statistics
from collections.abc import AsyncIterator
from time import perf_counter

import msgspec

from bench.figures import OURS, Figure
from bench.peers.driver import PAYLOAD
from bench.peers.tandem import OPTIONS
from bench.processes import MeasurementFailed, open_service
from bench.stream import read
from bench.tasks import Flood
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import Submission

ITEM_BYTES = 200
ITEMS_PER_SECOND = 100_000  # of measurement
RUNNING_JOBS = 1000
ROWS_PER_SECOND = 10_000  # of measurement


async def output(seconds: float) -> AsyncIterator[Figure]:
    """Item 9: small items from `job.emit` to a client that reads NDJSON."""
    flood = Flood(items=int(ITEMS_PER_SECOND * seconds), size=ITEM_BYTES)
    async with open_service() as service:
        body = {"task": "bench.flood", "payload": flood.model_dump()}
        start = perf_counter()
        async with service.client.post("/v1/jobs", json=body) as answer:
            made = await answer.json()
        received = await read(service.port, f"/v1/jobs/{made['id']}/stream?types=output")
        spent = perf_counter() - start
    if received.items != flood.items:
        raise MeasurementFailed(f"the client received {received.items} of {flood.items} items")
    yield Figure(
        f"emit, items of {ITEM_BYTES} bytes, task to client",
        "items/s",
        OURS,
        received.items / spent,
    )


async def latency(seconds: float) -> AsyncIterator[Figure]:
    """Item 3: POSTs that wait for their result, one after another over one connection."""
    body = {"task": "bench.noop", "payload": PAYLOAD}
    async with open_service() as service:

        async def round_trip() -> float:
            start = perf_counter()
            async with service.client.post(
                "/v1/jobs", json=body, headers={"Prefer": "wait=5"}
            ) as answer:
                made = await answer.json()
            if made.get("state") != "succeeded":
                raise MeasurementFailed(f"POST /v1/jobs answered {answer.status}: {made}")
            return 1000 * (perf_counter() - start)

        for _ in range(20):
            await round_trip()
        times = [await round_trip() for _ in range(max(50, int(seconds * 60)))]
    yield Figure("POST with Prefer: wait, idle, median", "ms", OURS, statistics.median(times))
    yield Figure(
        "POST with Prefer: wait, idle, 99th percentile",
        "ms",
        OURS,
        statistics.quantiles(times, n=100)[98],
    )


async def rows(seconds: float) -> AsyncIterator[Figure]:
    """Item 10: rows that an otherwise idle worker writes to SQLite, for scheduled jobs."""
    count = int(ROWS_PER_SECOND * seconds)
    async with open_service() as service:
        await service.worker.until(service.ledger_is_current)
        jobs = [
            Submission(id=new_id(), task="bench.noop", payload=b"{}", options=OPTIONS, delay=3600.0)
            for _ in range(count)
        ]
        start = perf_counter()
        await service.queue.submit_many(jobs)
        await service.worker.until(service.ledger_is_current)
        spent = perf_counter() - start
        async with service.client.get("/v1/jobs?state=scheduled&limit=1") as answer:
            if not msgspec.json.decode(await answer.read())["items"]:
                raise MeasurementFailed("the ledger has no rows")
    yield Figure("ledger, one otherwise idle worker, SQLite", "rows/s", OURS, count / spent)


async def memory(seconds: float) -> AsyncIterator[Figure]:
    """Item 8: the API's memory."""
    async with open_service(TANDEM_CONCURRENCY=str(RUNNING_JOBS)) as service:
        yield Figure("API, idle", "MiB", OURS, service.api.rss())
        body = msgspec.json.encode(
            [{"task": "bench.sleep", "payload": {"seconds": 60}, "options": {"timeout": 90}}]
            * RUNNING_JOBS
        )
        headers = {"Content-Type": "application/json"}
        async with service.client.post("/v1/jobs/bulk", data=body, headers=headers) as answer:
            answer.raise_for_status()

        async def running() -> bool:
            return sum(one.running for one in await service.queue.stats()) == RUNNING_JOBS

        await service.worker.until(running)
        await asyncio.sleep(seconds)
        yield Figure(f"API, {RUNNING_JOBS:,} jobs running", "MiB", OURS, service.api.rss())
