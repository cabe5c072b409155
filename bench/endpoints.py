"""Over HTTP: Tandem's API beside FastAPI endpoints that do nothing, and beside FastAPI in front of tuned arq."""

import contextlib
import itertools
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from time import perf_counter

import aiohttp
import msgspec

from bench.figures import OURS, Figure
from bench.load import rate, request
from bench.peers.driver import PAYLOAD
from bench.processes import Process, open_service
from bench.systems import WEB, System, open_system, python
from shared.services import free_port

BULK = 1000  # jobs in one request
KNOWN = 1000  # jobs that are asked for in turn
EMPTY, PLAIN = "empty FastAPI", "FastAPI + arq"
POST = "POST of one job, 64 connections"
GET = "GET of a job's status, 64 connections"
SHORT = 0.5  # seconds before the clock


def body(task: str) -> bytes:
    return msgspec.json.encode({"task": task, "payload": PAYLOAD})


def bulk(path: str, task: str) -> bytes:
    return request("POST", path, b"[" + b",".join([body(task)] * BULK) + b"]")


@contextlib.asynccontextmanager
async def open_web() -> AsyncIterator[tuple[System, int]]:
    """FastAPI in front of arq, one process like Tandem's API, and its port; the worker is not started."""
    async with open_system("arq") as system:
        port = free_port()
        argv = [python(WEB), "-m", "uvicorn", "bench.peers.web:app", "--port", str(port), "--no-access-log"]
        process = Process("FastAPI", argv, system.data / "web.log", system.env)
        system.begun.append(process)

        async def answers() -> bool:
            try:
                async with aiohttp.ClientSession() as client, client.get(f"http://127.0.0.1:{port}/empty/1") as answer:
                    return answer.status == 200
            except aiohttp.ClientConnectionError:
                return False

        await process.until(answers)
        yield system, port


async def timed(port: int, wanted: Callable[[], bytes], status: int, seconds: float, connections: int = 64) -> float:
    """Answers per second, once it is warm."""
    await rate(port, wanted, status, SHORT, connections)
    return (await rate(port, wanted, status, seconds, connections))[0]


def steady(wanted: bytes) -> Callable[[], bytes]:
    return lambda: wanted


async def requests(seconds: float, *, peers: bool) -> AsyncIterator[Figure]:
    """Item 4: what the API answers while no worker takes anything from it."""
    async with contextlib.AsyncExitStack() as stack:
        service = await stack.enter_async_context(open_service())
        submissions = b"[" + b",".join([body("bench.noop")] * KNOWN) + b"]"
        headers = {"Content-Type": "application/json"}
        async with service.client.post("/v1/jobs/bulk", data=submissions, headers=headers) as answer:
            ids = [one["id"] for one in await answer.json()]
        await service.worker.until(service.settled)
        service.worker.signal(signal.SIGSTOP)
        gets = itertools.cycle([request("GET", f"/v1/jobs/{id}") for id in ids])
        # What is compared is measured within a few seconds, where all have the same neighbours.
        system, other = await stack.enter_async_context(open_web()) if peers else (None, 0)
        posted = steady(request("POST", "/v1/jobs", body("bench.noop")))
        yield Figure(POST, "requests/s", OURS, await timed(service.port, posted, 202, seconds))
        if peers:
            for path, name in (("/empty", EMPTY), ("/jobs", PLAIN)):
                posted = steady(request("POST", path, body("noop")))
                yield Figure(POST, "requests/s", name, await timed(other, posted, 202, seconds))
        yield Figure(GET, "requests/s", OURS, await timed(service.port, lambda: next(gets), 200, seconds))
        if system is not None:
            got = steady(request("GET", "/empty/1"))
            yield Figure(GET, "requests/s", EMPTY, await timed(other, got, 200, seconds))
            names = await system.redis.zrange("arq:queue", 0, KNOWN - 1)
            plain = itertools.cycle([request("GET", f"/jobs/{one.decode()}") for one in names])
            yield Figure(GET, "requests/s", PLAIN, await timed(other, lambda: next(plain), 200, seconds))
        for port, path, task, name in (
            (service.port, "/v1/jobs/bulk", "bench.noop", OURS),
            (other, "/jobs/bulk", "noop", PLAIN),
        ):
            if port:
                rate_ = await timed(port, steady(bulk(path, task)), 200, seconds, 4)
                yield Figure(f"bulk, {BULK:,} jobs a request, 4 connections", "jobs/s", name, rate_ * BULK)


async def whole(seconds: float, *, peers: bool) -> AsyncIterator[Figure]:
    """Item 2: from the first POST until every job is final, with one worker."""
    what = "POST until all are final, one worker"

    async def end_to_end(port: int, wanted: bytes, drained: Callable[[], Awaitable[None]]) -> float:
        await rate(port, steady(wanted), 202, SHORT)
        await drained()
        began = perf_counter()
        _, count = await rate(port, steady(wanted), 202, seconds)
        await drained()
        return count / (perf_counter() - began)

    async with open_service() as service:
        posted = request("POST", "/v1/jobs", body("bench.noop"))

        async def settled() -> None:
            await service.worker.until(service.settled)

        yield Figure(what, "jobs/s", OURS, await end_to_end(service.port, posted, settled))
        async with service.client.get("/v1/jobs?state=failed") as answer:
            if (await answer.json())["items"]:
                raise service.worker.broken("has failed jobs")
    if not peers:
        return
    async with open_web() as (system, port):
        await system.start_worker()

        async def finished() -> None:
            await system.client.ask("finished")

        yield Figure(what, "jobs/s", PLAIN, await end_to_end(port, request("POST", "/jobs", body("noop")), finished))
