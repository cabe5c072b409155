"""`http.gather` against a bare aiohttp loop: the same requests to one local server, at the same concurrency.

    .venv/bin/python bench/gather.py [requests] [concurrency] [rounds]

The server is a process of its own. Each round runs both, one after the other; the ratio is that of the medians.
"""

import asyncio
import statistics
import sys
import time
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

from worker.tasks import http
from worker.testing import Recorder, open_bench, run

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


async def measure(count: int, concurrency: int, rounds: int) -> None:
    pipe = asyncio.subprocess.PIPE
    server = await asyncio.create_subprocess_exec(sys.executable, __file__, SERVER, stdin=pipe, stdout=pipe)
    if server.stdin is None or server.stdout is None:
        raise SystemExit("the server has no pipes")
    port = int(await asyncio.wait_for(server.stdout.readline(), 30))
    urls = [f"http://127.0.0.1:{port}/{number}" for number in range(count)]
    expected = [{"path": f"/{number}"} for number in range(count)]
    payload = {"requests": [{"url": url} for url in urls], "concurrency": concurrency}
    spans: dict[str, list[float]] = {"aiohttp": [], "http.gather": []}
    async with open_bench(http_allow="127.0.0.0/8") as resources:
        for _ in range(rounds):
            began = time.perf_counter()
            answers = await bare(urls, concurrency)
            spans["aiohttp"].append(time.perf_counter() - began)
            began = time.perf_counter()
            result = await run(http.gather, payload, resources=resources, sink=Recorder())
            spans["http.gather"].append(time.perf_counter() - began)
            if answers != expected or [one["json"] for one in result["results"]] != expected:
                raise SystemExit("the answers are not those of the server")
    server.stdin.close()
    await asyncio.wait_for(server.wait(), 30)
    medians = {name: statistics.median(seconds) for name, seconds in spans.items()}
    for name, seconds in spans.items():
        print(f"{name}: {medians[name]:.3f} s ({min(seconds):.3f} to {max(seconds):.3f})")
    print(f"ratio of the medians: {medians['http.gather'] / medians['aiohttp']:.2f}")


if __name__ == "__main__":
    if sys.argv[1:] == [SERVER]:
        asyncio.run(serve())
    else:
        count, concurrency, rounds = (int(one) for one in [*sys.argv[1:], *("1000", "100", "15")[len(sys.argv) - 1 :]])
        uvloop.run(measure(count, concurrency, rounds))
