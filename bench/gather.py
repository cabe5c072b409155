"""`http.gather` against a bare aiohttp loop: the same requests to one local server, at the same concurrency.

    .venv/bin/python -m bench.gather [requests] [concurrency] [rounds]

Each round has a server of its own, so that nobody finds connections open, and runs three after one
another: the bare loop, the task in this process, and a job from its POST to its end through an API
and a worker, processes of their own. Ratios are taken within each round, where all had the same
neighbours.
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

from bench.processes import ROOT, Broken, open_service
from tandem_worker.tasks.http.gather import gather as http_gather
from tandem_worker.testing import Recorder, open_bench, run

SERVER = "server"  # the argument with which this script serves


async def answer(request: web.BaseRequest) -> web.Response:
    return web.json_response({"path": request.path})


async def serve() -> None:
    """Answers until stdin ends; its port is the one line that it prints."""
    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


async def bare(urls: list[str], concurrency: int) -> list[Any]:
    """What one would write by hand."""
    room = asyncio.Semaphore(concurrency)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session:

        async def get(url: str) -> Any:
            async with room, session.get(url) as response:
                return await response.json()

        return await asyncio.gather(*map(get, urls))


@contextlib.asynccontextmanager
async def serving(count: int) -> AsyncIterator[list[str]]:
    """So many URLs of a new server."""
    pipe = asyncio.subprocess.PIPE
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.gather", SERVER, cwd=ROOT, stdin=pipe, stdout=pipe
    )
    if server.stdin is None or server.stdout is None:
        raise Broken("the server has no pipes")
    port = int(await asyncio.wait_for(server.stdout.readline(), 30))
    yield [f"http://127.0.0.1:{port}/{number}" for number in range(count)]
    server.stdin.close()
    await asyncio.wait_for(server.wait(), 30)


def asked(urls: list[str], concurrency: int) -> dict[str, Any]:
    return {"requests": [{"url": url} for url in urls], "concurrency": concurrency}


async def job(client: aiohttp.ClientSession, payload: Any) -> Any:
    """The job's result, also where it is a file."""
    body = {"task": "http.gather", "payload": payload}
    async with client.post("/v1/jobs", json=body, headers={"Prefer": "wait=30"}) as response:
        made = await response.json()
    if made.get("state") != "succeeded":
        raise Broken(f"the job did not succeed: {made}")
    async with client.get(made["links"]["result"]) as response:
        return await response.json()


async def compare(count: int, concurrency: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, by name."""
    expected = [{"path": f"/{number}"} for number in range(count)]
    spans: dict[str, list[float]] = {"bare aiohttp": [], "http.gather": [], "POST to result": []}

    async def timed(name: str, work: Awaitable[Any]) -> None:
        began = time.perf_counter()
        answers = await work
        spans[name].append(time.perf_counter() - began)
        if isinstance(answers, dict):
            answers = [one["json"] for one in answers["results"]]
        if answers != expected:
            raise Broken("the answers are not those of the server")

    allowed = "127.0.0.0/8"
    async with (
        open_bench(http_allow=allowed) as resources,
        open_service(TANDEM_HTTP_ALLOW=allowed) as whole,
    ):
        for number in range(rounds + 1):
            async with serving(count) as urls:
                await timed("bare aiohttp", bare(urls, concurrency))
            async with serving(count) as urls:
                await timed(
                    "http.gather",
                    run(
                        http_gather, asked(urls, concurrency), resources=resources, sink=Recorder()
                    ),
                )
            async with serving(count) as urls:
                await timed("POST to result", job(whole.client, asked(urls, concurrency)))
            if not number:  # imports, script caches
                for seconds in spans.values():
                    seconds.clear()
    return spans


async def measure(count: int, concurrency: int, rounds: int) -> None:
    spans = await compare(count, concurrency, rounds)
    for name, seconds in spans.items():
        ratios = [one / other for one, other in zip(seconds, spans["bare aiohttp"], strict=True)]
        print(
            f"{name:<15} {statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f}),"
            f" {statistics.median(ratios):.2f} × bare ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    if sys.argv[1:] == [SERVER]:
        asyncio.run(serve())
    else:
        count, concurrency, rounds = (
            int(one) for one in [*sys.argv[1:], *("1000", "100", "15")[len(sys.argv) - 1 :]]
        )
        uvloop.run(measure(count, concurrency, rounds))
