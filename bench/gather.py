"""`http.gather` compared with a bare aiohttp loop: the same requests at the same concurrency.

    .venv/bin/python -m bench.gather [requests] [concurrency] [rounds]

Each round measures three in a row: the bare loop, the task in this process, and a job from its POST
to its end, through separate API and worker processes. Each gets a new local server, so that none
finds open connections. Ratios are taken within each round, under the same load.
"""

import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

from bench.processes import ROOT, MeasurementFailed, open_service
from tandem_worker.tasks.http.gather import gather as http_gather
from tandem_worker.testing import Recorder, open_bench, run

SERVER = "server"  # the argument that makes this script a server


async def answer(request: web.BaseRequest) -> web.Response:
    return web.json_response({"path": request.path})


async def serve() -> None:
    """Serve until stdin is closed; prints its port as the only line."""
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


async def bare(urls: list[str], concurrency: int) -> list[Any]:
    """The answers, fetched as one would by hand."""
    slots = asyncio.Semaphore(concurrency)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session:

        async def get(url: str) -> Any:
            async with slots, session.get(url) as response:
                return await response.json()

        return await asyncio.gather(*map(get, urls))


@contextlib.asynccontextmanager
async def serving(count: int) -> AsyncIterator[list[str]]:
    """The URLs of `count` resources on a new server."""
    pipe = asyncio.subprocess.PIPE
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.gather", SERVER, cwd=ROOT, stdin=pipe, stdout=pipe
    )
    if server.stdin is None or server.stdout is None:
        raise MeasurementFailed("the server has no pipes")
    port = int(await asyncio.wait_for(server.stdout.readline(), 30))
    yield [f"http://127.0.0.1:{port}/{number}" for number in range(count)]
    server.stdin.close()
    await asyncio.wait_for(server.wait(), 30)


def gather_payload(urls: list[str], concurrency: int) -> dict[str, Any]:
    return {"requests": [{"url": url} for url in urls], "concurrency": concurrency}


async def run_job(client: aiohttp.ClientSession, payload: Any) -> Any:
    """The job's result, even if it was stored as a file."""
    body = {"task": "http.gather", "payload": payload}
    async with client.post("/v1/jobs", json=body, headers={"Prefer": "wait=30"}) as response:
        made = await response.json()
    if made.get("state") != "succeeded":
        raise MeasurementFailed(f"the job did not succeed: {made}")
    async with client.get(made["links"]["result"]) as response:
        return await response.json()


async def compare(count: int, concurrency: int, rounds: int) -> dict[str, list[float]]:
    """Name → the seconds of each round."""
    expected = [{"path": f"/{number}"} for number in range(count)]
    spans: dict[str, list[float]] = {"bare aiohttp": [], "http.gather": [], "POST to result": []}

    async def timed(name: str, work: Awaitable[Any]) -> None:
        start = time.perf_counter()
        answers = await work
        spans[name].append(time.perf_counter() - start)
        if isinstance(answers, dict):
            answers = [result["json"] for result in answers["results"]]
        if answers != expected:
            raise MeasurementFailed(f"{name}: the answers differ from what the server sent")

    loopback = "127.0.0.0/8"
    async with (
        open_bench(http_allow=loopback) as resources,
        open_service(TANDEM_HTTP_ALLOW=loopback) as service,
    ):
        for number in range(rounds + 1):
            async with serving(count) as urls:
                await timed("bare aiohttp", bare(urls, concurrency))
            async with serving(count) as urls:
                await timed(
                    "http.gather",
                    run(
                        http_gather,
                        gather_payload(urls, concurrency),
                        resources=resources,
                        sink=Recorder(),
                    ),
                )
            async with serving(count) as urls:
                await timed(
                    "POST to result", run_job(service.client, gather_payload(urls, concurrency))
                )
            if not number:  # the warm-up: imports and script caches
                for seconds in spans.values():
                    seconds.clear()
    return spans


async def measure(count: int, concurrency: int, rounds: int) -> None:
    spans = await compare(count, concurrency, rounds)
    for name, seconds in spans.items():
        ratios = [ours / bare for ours, bare in zip(seconds, spans["bare aiohttp"], strict=True)]
        times = f"{statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"
        factors = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:<15} {times}, × bare: {factors}")


if __name__ == "__main__":
    if sys.argv[1:] == [SERVER]:
        asyncio.run(serve())
    else:
        count, concurrency, rounds = (
            int(text) for text in [*sys.argv[1:], *("1000", "100", "15")[len(sys.argv) - 1 :]]
        )
        uvloop.run(measure(count, concurrency, rounds))
