"""How soon many stream readers receive output and the end, and what they cost while idle.

    .venv/bin/python bench/readers.py [--readers 2000] [--idle 20]

One API process, and readers of server-sent events over one connection each: first all on the same
job, then each on a different job. Times start with the call that reports output or ends the jobs;
CPU is the API's, in percent of one core.
"""

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter

import psutil
import uvloop

from tandem_shared import catalogue
from tandem_shared.dev.servers import LocalServer, die_with_parent, free_port, redis_server
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Submission
from tandem_shared.jobs.states import State
from tandem_shared.queue.connections import connect
from tandem_shared.queue.messages import Claimed, Finish, Report, WorkerInfo
from tandem_shared.queue.queue import Queue

ROOT = Path(__file__).parent.parent
TIMEOUT_SECONDS = 60.0  # for any single step
SETTLE_SECONDS = 6.0  # after which connecting has no more effect on the API's CPU
TASK = "bench.read"
MAX_CONNECTING = 200  # connections that are opened together
BATCH_JOBS = 500  # in one call to Redis


class Reader(asyncio.Protocol):
    """One client; `at` has the time at which it last received an event of each type."""

    def __init__(self, id: str) -> None:
        self.at: dict[bytes, float] = {}
        self._id = id
        self.bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # TCP connections have a full Transport
        transport.write(
            b"GET /v1/jobs/%s/stream HTTP/1.1\r\nHost: bench\r\n\r\n" % self._id.encode()
        )

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        self.bytes += len(data)
        for event in (b"state", b"output", b"end"):
            if b"event: " + event in data:
                self.at[event] = now


def _same(reader: Reader) -> Reader:
    return reader


def _all(readers: Sequence[Reader], event: bytes) -> bool:
    return all(event in reader.at for reader in readers)


async def until(fact: Callable[[], bool], what: str) -> None:
    deadline = perf_counter() + TIMEOUT_SECONDS
    while not fact():
        if perf_counter() > deadline:
            raise SystemExit(f"not within {TIMEOUT_SECONDS:g} s: {what}")
        await asyncio.sleep(0.02)


@contextmanager
def started(argv: Sequence[str], **env: str) -> Iterator[psutil.Process]:
    """A process that ends with this one."""
    with subprocess.Popen(
        argv, cwd=ROOT, env={**os.environ, **env}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.kill()


def listens(port: int) -> bool:
    return any(
        one.laddr.port == port and one.status == "LISTEN" for one in psutil.net_connections("tcp")
    )


class Jobs:
    """The jobs' side: claims jobs, reports output and finishes them, in place of a worker."""

    def __init__(self, queue: Queue, port: int, api: psutil.Process) -> None:
        self.queue, self.port, self.api = queue, port, api
        self._entry = catalogue.CatalogueEntry(
            name=TASK, summary="", payload_schema={}, result_schema={}, defaults={}
        )
        self._claims = 0

    async def register(self) -> None:
        await self.queue.register(
            WorkerInfo(
                id="b-1",
                host="b",
                pid=1,
                queues=("default",),
                concurrency=9999,
                version="1",
                started_at=1e9,
            ),
            [self._entry],
        )

    async def start(self, count: int) -> list[Claimed]:
        jobs = [
            Submission(id=new_id(), task=TASK, payload=b"{}", options=JobOptions(timeout=3600))
            for _ in range(count)
        ]
        await self.queue.submit_many(jobs)
        claimed: list[Claimed] = []
        while len(claimed) < count:
            self._claims += 1
            digest = catalogue.digest([self._entry])
            claim = await self.queue.claim(
                "b-1", self._claims, slots=500, tasks=digest, queues=("default",)
            )
            claimed += claim.jobs
        return claimed

    async def read(self, ids: Sequence[str]) -> list[Reader]:
        loop = asyncio.get_running_loop()
        readers = [Reader(id) for id in ids]
        for start in range(0, len(readers), MAX_CONNECTING):
            connecting = (
                loop.create_connection(partial(_same, reader), "127.0.0.1", self.port)
                for reader in readers[start : start + MAX_CONNECTING]
            )
            await asyncio.gather(*connecting)
        first = "every reader received its first entry"
        await until(lambda: all(reader.at for reader in readers), first)
        return readers

    def cpu(self) -> float:
        """CPU seconds of the API so far."""
        times = self.api.cpu_times()
        return float(times.user + times.system)

    async def measure(
        self, name: str, claimed: Sequence[Claimed], ids: Sequence[str], idle: float
    ) -> None:
        start = perf_counter()
        readers = await self.read(ids)
        print(f"{name}: {len(readers)} readers connected in {perf_counter() - start:.2f} s")
        await asyncio.sleep(SETTLE_SECONDS)
        before = self.cpu()
        await asyncio.sleep(idle)
        share, rss = 100 * (self.cpu() - before) / idle, self.api.memory_info().rss >> 20
        print(f"  idle: {share:.1f} % of a core, RSS {rss} MiB")
        for event, act in ((b"output", self._report), (b"end", self._finish)):
            before, start = self.cpu(), perf_counter()
            await act(claimed)
            await until(partial(_all, readers, event), f"every reader received {event.decode()}")
            times = sorted(reader.at[event] - start for reader in readers)
            spread = f"median {times[len(times) // 2]:.3f} s, last {times[-1]:.3f} s"
            print(f"  {event.decode()}: {spread}, CPU {self.cpu() - before:.2f} s")

    async def _report(self, claimed: Sequence[Claimed]) -> None:
        for start in range(0, len(claimed), BATCH_JOBS):
            batch = claimed[start : start + BATCH_JOBS]
            await self.queue.report(
                [Report(job.id, job.token, 1, "output", b'{"n":1}') for job in batch],
                limit=1 << 30,
            )

    async def _finish(self, claimed: Sequence[Claimed]) -> None:
        for start in range(0, len(claimed), BATCH_JOBS):
            batch = claimed[start : start + BATCH_JOBS]
            await self.queue.finish(
                [Finish(job.id, job.token, State.SUCCEEDED, "succeeded", b"1") for job in batch]
            )


async def main(count: int, idle: float) -> None:
    with tempfile.TemporaryDirectory(prefix="tandem-") as data:
        server, port = redis_server(Path(data)), free_port()
        env = {
            "TANDEM_REDIS_URL": server.url,
            "TANDEM_PORT": str(port),
            "TANDEM_STORE_URL": f"file://{data}/files",
            "TANDEM_LEASE": "600",  # without a heartbeat
        }
        with started(die_with_parent(server.argv)):
            client = connect(server.url)
            await until_ready(server)
            with started(die_with_parent([sys.executable, "-m", "tandem_api"]), **env) as api:
                await until(partial(listens, port), "the API")
                await measure_all(Jobs(Queue(client, lease=600), port, api), count, idle)
            await client.aclose()


async def until_ready(server: LocalServer) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not await server.ready():  # noqa: ASYNC110 - another process has no event to wait for
            await asyncio.sleep(0.02)


async def measure_all(jobs: Jobs, count: int, idle: float) -> None:
    await jobs.register()
    single = await jobs.start(1)
    await jobs.measure("one job", single, [single[0].id] * count, idle)
    many = await jobs.start(count)
    await jobs.measure("a job each", many, [job.id for job in many], idle)
    await jobs.queue.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readers", type=int, default=2000, metavar="N", help="readers (2000)")
    parser.add_argument(
        "--idle",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="how long to measure idle readers (20)",
    )
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    uvloop.run(main(given.readers, given.idle))
