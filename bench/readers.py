"""How soon many readers of streams hear of the end, and what they cost while nothing happens.

    .venv/bin/python bench/readers.py [--readers 2000] [--idle 20]

A real Redis, one API process, and readers of server-sent events over connections of their own:
first all of one job, then each of its own. Times are from the call that ends the jobs; CPU is the
API's, in per cent of one core.
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
from tandem_shared.dev.servers import Server, free_port, redis_server, tied
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Submission
from tandem_shared.jobs.states import State
from tandem_shared.queue.connections import connect
from tandem_shared.queue.messages import Claimed, Finish, Report, WorkerInfo
from tandem_shared.queue.queue import Queue

ROOT = Path(__file__).parent.parent
PATIENCE = 60.0  # seconds for any one step
TASK = "bench.read"
AT_ONCE = 200  # connections that are made together


class Reader(asyncio.Protocol):
    """One client; when it heard what last is in `at`."""

    def __init__(self, id: str) -> None:
        self.at: dict[bytes, float] = {}
        self._id = id
        self.bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # it is one
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
    return all(event in one.at for one in readers)


async def until(fact: Callable[[], bool], what: str) -> None:
    late = perf_counter() + PATIENCE
    while not fact():
        if perf_counter() > late:
            raise SystemExit(f"it takes too long: {what}")
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


class Bench:
    """The jobs' side: they are claimed, say things and end by hand."""

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

    async def begin(self, count: int) -> list[Claimed]:
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
        for start in range(0, len(readers), AT_ONCE):
            made = (
                loop.create_connection(partial(_same, one), "127.0.0.1", self.port)
                for one in readers[start : start + AT_ONCE]
            )
            await asyncio.gather(*made)
        await until(lambda: all(one.at for one in readers), "the first entry at every reader")
        return readers

    def used(self) -> float:
        times = self.api.cpu_times()
        return float(times.user + times.system)

    async def measure(
        self, name: str, claimed: Sequence[Claimed], ids: Sequence[str], idle: float
    ) -> None:
        begun = perf_counter()
        readers = await self.read(ids)
        connected = perf_counter() - begun
        await asyncio.sleep(6)  # what follows from the coming itself is over
        before = self.used()
        await asyncio.sleep(idle)
        quiet = self.used() - before
        spans = {}
        for event, act in ((b"output", self._say), (b"end", self._finish)):
            before, begun = self.used(), perf_counter()
            await act(claimed)
            await until(partial(_all, readers, event), f"{event!r} at every reader")
            times = sorted(one.at[event] - begun for one in readers)
            spans[event] = (times[len(times) // 2], times[-1], self.used() - before)
        print(f"{name}: {len(readers)} readers came within {connected:.2f} s")
        print(
            f"  idle: {100 * quiet / idle:.1f} % of a core, RSS {self.api.memory_info().rss >> 20} MiB"
        )
        for event, (middle, last, cpu) in spans.items():
            print(f"  {event.decode()}: median {middle:.3f} s, last {last:.3f} s, CPU {cpu:.2f} s")

    async def _say(self, claimed: Sequence[Claimed]) -> None:
        for start in range(0, len(claimed), 500):
            portion = claimed[start : start + 500]
            await self.queue.report(
                [Report(one.id, one.token, 1, "output", b'{"n":1}') for one in portion],
                limit=1 << 30,
            )

    async def _finish(self, claimed: Sequence[Claimed]) -> None:
        for start in range(0, len(claimed), 500):
            portion = claimed[start : start + 500]
            await self.queue.finish(
                [Finish(one.id, one.token, State.SUCCEEDED, "succeeded", b"1") for one in portion]
            )


async def main(count: int, idle: float) -> None:
    with tempfile.TemporaryDirectory(prefix="tandem-") as data:
        server, port = redis_server(Path(data)), free_port()
        env = {
            "TANDEM_REDIS_URL": server.url,
            "TANDEM_PORT": str(port),
            "TANDEM_STORE_URL": f"file://{data}/files",
            "TANDEM_LEASE": "600",  # nobody beats here
        }
        with started(tied(server.argv, user=server.user)):
            client = connect(server.url)
            await until_ready(server)
            with started(tied([sys.executable, "-m", "tandem_api"]), **env) as api:
                await until(partial(listens, port), "the API")
                await measure_all(Bench(Queue(client, lease=600), port, api), count, idle)
            await client.aclose()


async def until_ready(server: Server) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await server.ready():  # noqa: ASYNC110 - another process has no event to wait for
            await asyncio.sleep(0.02)


async def measure_all(bench: Bench, count: int, idle: float) -> None:
    await bench.register()
    one = await bench.begin(1)
    await bench.measure("one job", one, [one[0].id] * count, idle)
    many = await bench.begin(count)
    await bench.measure("a job each", many, [each.id for each in many], idle)
    await bench.queue.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readers", type=int, default=2000, metavar="N", help="readers (2000)")
    parser.add_argument(
        "--idle", type=float, default=20.0, metavar="SECONDS", help="how long nothing happens (20)"
    )
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    uvloop.run(main(given.readers, given.idle))
