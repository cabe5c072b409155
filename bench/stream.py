"""One job that streams more than memory holds, read by one who reads all the time and one who sleeps in between.

    .venv/bin/python -m bench.stream [--gigabytes 5] [--size 65536] [--sleeper]

Redis, a worker and the API are processes of their own. Both readers ask for NDJSON and hash the
items; the hashes must be that of what the job made. Prints the rates, and the most memory that each
process and Redis had.
"""

import argparse
import asyncio
import hashlib
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import uvloop

from bench.processes import Broken, Process
from bench.tasks import Flood, made
from tandem_shared.dev.servers import free_port, redis_server
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Submission
from tandem_shared.queue.connections import connect
from tandem_shared.queue.queue import Queue

ROOT = Path(__file__).parent.parent
NAP = 0.5  # seconds that the sleeper sleeps
BETWEEN = 32 << 20  # bytes that it reads in between
MIB = 1 << 20


class Most:
    """The most memory that was seen, in MiB, by name."""

    def __init__(self, processes: dict[str, psutil.Process], redis: Any) -> None:
        self.processes, self.redis = processes, redis
        self.of: dict[str, float] = {}

    async def watch(self) -> None:
        """Looks every quarter of a second."""
        while True:
            now = {
                f"{name} RSS": one.memory_info().rss / MIB for name, one in self.processes.items()
            }
            now["redis used_memory"] = (await self.redis.info("memory"))["used_memory"] / MIB
            self.of = {name: max(value, self.of.get(name, 0.0)) for name, value in now.items()}
            await asyncio.sleep(0.25)


async def read(port: int, path: str, *, nap: float = 0.0) -> tuple[str, int, float, float]:
    """Hash of the items, how many, seconds to the first and to the last."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4 << 20)
    writer.write(f"GET {path} HTTP/1.0\r\nHost: x\r\nAccept: application/x-ndjson\r\n\r\n".encode())
    began = perf_counter()
    while await reader.readline() not in (b"\r\n", b""):
        pass
    digest, count, first, since, rest = hashlib.sha256(), 0, 0.0, 0, b""
    while data := await reader.read(1 << 20):
        first = first or perf_counter() - began
        lines = (rest + data).split(b"\n")
        rest = lines.pop()
        for line in lines:
            if line.startswith(b'{"id"') and b'"type":"output"' in line[:60]:
                digest.update(line[line.index(b'"data":') + 7 : -1])
                count += 1
        since += len(data)
        if nap and since >= BETWEEN:
            since = 0
            await asyncio.sleep(nap)
    writer.close()
    return digest.hexdigest(), count, first, perf_counter() - began


async def measure(options: argparse.Namespace) -> None:
    total = int(options.gigabytes * 1e9)
    wanted = Flood(items=total // options.size, size=options.size)
    async with AsyncExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tandem-")))
        server, port = redis_server(data), free_port()
        env = {
            "TANDEM_REDIS_URL": server.url,
            "TANDEM_STORE_URL": f"file://{data}/store",
            "TANDEM_TASKS": "bench.tasks",
            "TANDEM_PORT": str(port),
            "PYTHONPATH": str(ROOT),
        }

        def begin(name: str, argv: list[str]) -> Process:
            process = Process(name, argv, data / f"{name}.log", env)
            stack.callback(process.end)
            return process

        redis_process = begin("redis", list(server.argv))
        await redis_process.until(server.ready)
        redis = connect(server.url)
        stack.push_async_callback(redis.aclose)
        queue = Queue(redis)
        stack.push_async_callback(queue.close)
        worker = begin("worker", [sys.executable, "-m", "tandem_worker"])
        api = begin("api", [sys.executable, "-m", "tandem_api"])

        async def there() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                return False
            writer.close()
            return bool(await queue.workers())

        await api.until(there)
        processes = {
            one.name: psutil.Process(one.popen.pid) for one in (redis_process, worker, api)
        }
        most = Most(processes, redis)
        watching = asyncio.create_task(most.watch())
        job = Submission(
            id=new_id(), task="bench.flood", payload=wanted.model_dump_json().encode(),
            options=JobOptions(timeout=3600.0, retry={"max_attempts": 1}),
        )  # fmt: skip
        await queue.submit(job)
        path = f"/v1/jobs/{job.id}/stream?types=output"
        readers = {"reader": read(port, path)}
        if options.sleeper:
            readers["sleeper"] = read(port, path, nap=NAP)
        answers = dict(zip(readers, await asyncio.gather(*readers.values()), strict=True))
        record = await queue.get(job.id)
        watching.cancel()
        cpu = {name: sum(one.cpu_times()[:2]) for name, one in processes.items()}
    digest = hashlib.sha256()
    for item in made(wanted):
        digest.update(item)
    if record is None or not record.done or record.ended is None or record.began is None:
        raise Broken("the job did not end")
    print(f"{record.state}: {wanted.items} items of {options.size} bytes, {total / 1e9:g} GB")
    span = (record.ended - record.began) / 1e6
    print(f"job: {span:.1f} s, {total / span / 1e6:.0f} MB/s, {wanted.items / span:.0f} items/s")
    for name, (hash, count, first, seconds) in answers.items():
        rate = f"{total / seconds / 1e6:.0f} MB/s, {count / seconds:.0f} items/s"
        same = "the same hash" if hash == digest.hexdigest() else "ANOTHER HASH"
        print(
            f"{name}: {count} items, {same}, first after {first * 1000:.0f} ms, all after {seconds:.1f} s, {rate}"
        )
    print("most memory, MiB:", ", ".join(f"{name} {value:.0f}" for name, value in most.of.items()))
    print("CPU seconds:", ", ".join(f"{name} {value:.1f}" for name, value in cpu.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measures one large stream.")
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--size", type=int, default=64 << 10, help="bytes of an item")
    parser.add_argument(
        "--sleeper", action="store_true", help="a second reader, that sleeps in between"
    )
    uvloop.run(measure(parser.parse_args()))
