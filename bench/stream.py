"""One job that streams more than fits in memory, to a steady reader and to one that pauses.

    .venv/bin/python -m bench.stream [--gigabytes 5] [--size 65536] [--sleeper]

Redis, a worker and the API run as separate processes. Both readers request NDJSON and hash the
items; the hashes must match what the job generated. Prints the rates, and the peak memory of each
process and of Redis.
"""

import argparse
import asyncio
import hashlib
from collections.abc import Mapping
from time import perf_counter
from typing import Any, NamedTuple

import psutil
import uvloop

from bench.processes import MeasurementFailed, open_service
from bench.tasks import Flood, generated
from tandem_shared.jobs.ids import new_id
from tandem_shared.jobs.record import JobOptions, Record, Submission

PAUSE_SECONDS = 0.5  # how long the slow reader pauses
PAUSE_AFTER_BYTES = 32 << 20
MIB = 1 << 20


class PeakMemory:
    """The highest memory use seen, in MiB, by name."""

    def __init__(self, processes: dict[str, psutil.Process], redis: Any) -> None:
        self.processes, self.redis = processes, redis
        self.peaks: dict[str, float] = {}

    async def watch(self) -> None:
        """Sample four times per second, until cancelled."""
        while True:
            for name, process in self.processes.items():
                self._saw(f"{name} RSS", process.memory_info().rss)
            self._saw("redis used_memory", (await self.redis.info("memory"))["used_memory"])
            await asyncio.sleep(0.25)

    def _saw(self, name: str, size: int) -> None:
        self.peaks[name] = max(size / MIB, self.peaks.get(name, 0.0))


class Read(NamedTuple):
    """What a reader received; `first` and `seconds` are the times until the first and last byte."""

    digest: str
    items: int
    first: float
    seconds: float


async def read(port: int, path: str, *, pause: float = 0.0) -> Read:
    """Read a stream to its end, pausing after every PAUSE_AFTER_BYTES."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4 << 20)
    writer.write(f"GET {path} HTTP/1.0\r\nHost: x\r\nAccept: application/x-ndjson\r\n\r\n".encode())
    start = perf_counter()
    while await reader.readline() not in (b"\r\n", b""):
        pass
    digest, count, first, since_pause, rest = hashlib.sha256(), 0, 0.0, 0, b""
    while data := await reader.read(1 << 20):
        first = first or perf_counter() - start
        lines = (rest + data).split(b"\n")
        rest = lines.pop()
        for line in lines:
            if line.startswith(b'{"id"') and b'"type":"output"' in line[:60]:
                digest.update(line[line.index(b'"data":') + 7 : -1])
                count += 1
        since_pause += len(data)
        if pause and since_pause >= PAUSE_AFTER_BYTES:
            since_pause = 0
            await asyncio.sleep(pause)
    writer.close()
    return Read(digest.hexdigest(), count, first, perf_counter() - start)


async def measure(options: argparse.Namespace) -> None:
    flood = Flood(items=int(options.gigabytes * 1e9) // options.size, size=options.size)
    async with open_service() as service:
        processes = {name: psutil.Process(pid) for name, pid in service.pids().items()}
        memory = PeakMemory(processes, service.redis)
        watching = asyncio.create_task(memory.watch())
        job = Submission(
            id=new_id(),
            task="bench.flood",
            payload=flood.model_dump_json().encode(),
            options=JobOptions(timeout=3600.0, retry={"max_attempts": 1}),
        )
        await service.queue.submit(job)
        path = f"/v1/jobs/{job.id}/stream?types=output"
        readers = {"reader": read(service.port, path)}
        if options.sleeper:
            readers["sleeper"] = read(service.port, path, pause=PAUSE_SECONDS)
        answers = dict(zip(readers, await asyncio.gather(*readers.values()), strict=True))
        record = await service.queue.get(job.id)
        watching.cancel()
        cpu = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    if record is None or not record.done:
        raise MeasurementFailed("the job did not end")
    report(flood, record, answers)
    print(
        "peak memory, MiB:", ", ".join(f"{name} {peak:.0f}" for name, peak in memory.peaks.items())
    )
    print("CPU seconds:", ", ".join(f"{name} {seconds:.1f}" for name, seconds in cpu.items()))


def report(flood: Flood, record: Record, answers: Mapping[str, Read]) -> None:
    """Print the rates of the job and its readers, and whether they received what it generated."""
    total = flood.items * flood.size
    print(f"{record.state}: {flood.items} items of {flood.size} bytes, {total / 1e9:g} GB")
    if record.ended is not None and record.began is not None:
        span = (record.ended - record.began) / 1e6
        print(f"job: {span:.1f} s, {total / span / 1e6:.0f} MB/s, {flood.items / span:.0f} items/s")
    digest = hashlib.sha256()
    for item in generated(flood):
        digest.update(item)
    for name, found in answers.items():
        same = "correct hash" if found.digest == digest.hexdigest() else "WRONG HASH"
        times = f"first after {found.first * 1000:.0f} ms, all after {found.seconds:.1f} s"
        rate = f"{total / found.seconds / 1e6:.0f} MB/s, {found.items / found.seconds:.0f} items/s"
        print(f"{name}: {found.items} items, {same}, {times}, {rate}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measures one large stream.")
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--size", type=int, default=64 << 10, help="bytes per item")
    parser.add_argument("--sleeper", action="store_true", help="add a second reader that pauses")
    uvloop.run(measure(parser.parse_args()))
