"""Over HTTP: Tandem's API, FastAPI endpoints that do nothing, and FastAPI in front of tuned arq."""

import contextlib
import itertools
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import aiohttp
import msgspec

from bench.figures import OURS, Figure
from bench.load import rate, request
from bench.peers.driver import PAYLOAD
from bench.processes import Process, open_service
from bench.systems import WEB, System, open_system, python
from tandem_shared.dev.servers import free_port

BULK_JOBS = 1000  # in one request
READ_JOBS = 1000  # whose status is requested in turn
EMPTY, PLAIN = "empty FastAPI", "FastAPI + arq"
POST = "POST of one job, 64 connections"
GET = "GET of a job's status, 64 connections"
BULKS = f"bulk, {BULK_JOBS:,} jobs per request, 4 connections"
WARM_UP_SECONDS = 0.5


def body(task: str) -> bytes:
    return msgspec.json.encode({"task": task, "payload": PAYLOAD})


def bulk(path: str, task: str) -> bytes:
    return request("POST", path, b"[" + b",".join([body(task)] * BULK_JOBS) + b"]")


@dataclass(frozen=True, slots=True)
class Target:
    """An HTTP server, as the load generator knows it."""

    name: str
    process: Process
    port: int

    async def timed(
        self, what: str, ask: Callable[[], bytes], status: int, seconds: float, *, jobs: int = 1
    ) -> list[Figure]:
        """Requests per second after a warm-up, or jobs per second; and the server's CPU for each.

        `ask` makes the next request; each carries `jobs` jobs.
        """
        connections, unit = (64, "requests/s") if jobs == 1 else (4, "jobs/s")
        await rate(self.port, ask, status, WARM_UP_SECONDS, connections)
        before = self.process.cpu()
        per_second, count = await rate(self.port, ask, status, seconds, connections)
        spent = (self.process.cpu() - before) / count / jobs * 1e6
        each = "request" if jobs == 1 else "job"
        return [
            Figure(what, unit, self.name, per_second * jobs),
            Figure(f"{what}: server CPU per {each}", "µs", self.name, spent),
        ]


@contextlib.asynccontextmanager
async def open_web() -> AsyncIterator[tuple[System, Process, int]]:
    """FastAPI in front of arq: its system without a worker, its one process, and its port."""
    async with open_system("arq") as system:
        port = free_port()
        argv = [
            python(WEB),
            "-m",
            "uvicorn",
            "bench.peers.web:app",
            "--port",
            str(port),
            "--no-access-log",
        ]
        process = Process("FastAPI", argv, system.data / "web.log", system.env)
        system.processes.append(process)

        async def answers() -> bool:
            try:
                async with (
                    aiohttp.ClientSession() as client,
                    client.get(f"http://127.0.0.1:{port}/empty/1") as answer,
                ):
                    return answer.status == 200
            except aiohttp.ClientConnectionError:
                return False

        await process.until(answers)
        yield system, process, port


def always(request_bytes: bytes) -> Callable[[], bytes]:
    return lambda: request_bytes


async def requests(seconds: float, *, peers: bool) -> AsyncIterator[Figure]:
    """Item 4: what the API can answer while no worker competes with it."""
    async with contextlib.AsyncExitStack() as stack:
        service = await stack.enter_async_context(open_service())
        submissions = b"[" + b",".join([body("bench.noop")] * READ_JOBS) + b"]"
        headers = {"Content-Type": "application/json"}
        async with service.client.post(
            "/v1/jobs/bulk", data=submissions, headers=headers
        ) as answer:
            ids = [one["id"] for one in await answer.json()]
        await service.worker.until(service.settled)
        service.worker.signal(signal.SIGSTOP)
        ours = Target(OURS, service.api, service.port)
        # Compared systems are measured within seconds of each other, under the same load.
        web = await stack.enter_async_context(open_web()) if peers else None
        others = [Target(name, *web[1:]) for name in (EMPTY, PLAIN)] if web else []

        def posts(path: str, task: str) -> Callable[[], bytes]:
            return always(request("POST", path, body(task)))

        def gets(path: str, ids: Sequence[str]) -> Callable[[], bytes]:
            return partial(next, itertools.cycle([request("GET", f"{path}/{id}") for id in ids]))

        plan = [(ours, POST, posts("/v1/jobs", "bench.noop"), 202)]
        plan += [
            (one, POST, posts(path, "noop"), 202)
            for one, path in zip(others, ("/empty", "/jobs"), strict=False)
        ]
        for target, what, ask, status in plan:
            for figure in await target.timed(what, ask, status, seconds):
                yield figure
        plan = [(ours, GET, gets("/v1/jobs", ids), 200)]
        if web:
            names = [
                one.decode() for one in await web[0].redis.zrange("arq:queue", 0, READ_JOBS - 1)
            ]
            plan += [
                (others[0], GET, gets("/empty", names), 200),
                (others[1], GET, gets("/jobs", names), 200),
            ]
        for target, what, ask, status in plan:
            for figure in await target.timed(what, ask, status, seconds):
                yield figure
        for target, path, task in (
            (ours, "/v1/jobs/bulk", "bench.noop"),
            *((one, "/jobs/bulk", "noop") for one in others[1:]),
        ):
            for figure in await target.timed(
                BULKS, always(bulk(path, task)), 200, seconds, jobs=BULK_JOBS
            ):
                yield figure


async def end_to_end(seconds: float, *, peers: bool) -> AsyncIterator[Figure]:
    """Item 2: from the first POST until every job is final, with one worker."""
    what = "POST until all are final, one worker"

    async def measured(port: int, post: bytes, drained: Callable[[], Awaitable[None]]) -> float:
        await rate(port, always(post), 202, WARM_UP_SECONDS)
        await drained()
        start = perf_counter()
        _, count = await rate(port, always(post), 202, seconds)
        await drained()
        return count / (perf_counter() - start)

    async with open_service() as service:
        post = request("POST", "/v1/jobs", body("bench.noop"))

        async def settled() -> None:
            await service.worker.until(service.settled)

        yield Figure(what, "jobs/s", OURS, await measured(service.port, post, settled))
        async with service.client.get("/v1/jobs?state=failed") as answer:
            if (await answer.json())["items"]:
                raise service.worker.failure("ran jobs that failed")
    if not peers:
        return
    async with open_web() as (system, _, port):
        await system.start_worker()

        async def finished() -> None:
            await system.client.ask("finished")

        post = request("POST", "/jobs", body("noop"))
        yield Figure(what, "jobs/s", PLAIN, await measured(port, post, finished))
