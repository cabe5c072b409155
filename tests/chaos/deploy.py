"""A rolling restart of 2 APIs and 3 workers under load: `python -m tests.chaos.deploy --rate 500`.

The client tries each request once. As in a real deployment, each process is replaced before the
next one ends.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec

from tests.chaos.check.evidence import attempts
from tests.chaos.relay import ready
from tests.chaos.stage import PREFIX, Process, Stage, open_stage

DRAIN_SECONDS = 1.0  # then a worker hands its remaining jobs back
SETTINGS = {"TANDEM_DRAIN": f"{DRAIN_SECONDS:g}s"}  # of the stage
TIMEOUT_SECONDS = 60.0  # for a process to start, and for the last jobs to end


class RestartResult(NamedTuple):
    """`failed`: error → number of requests; `lost`: accepted jobs that did not succeed."""

    seconds: float
    requests: int
    failed: dict[str, int]
    lost: int
    charged: int  # attempts beyond the first one of each job
    released: int
    codes: list[int | None]  # exit codes of the replaced processes


class Load:
    """Submits jobs at a steady rate over kept-alive connections, one request per job."""

    def __init__(self, url: str, rate: float) -> None:
        self.accepted: list[str] = []
        self.failed: Counter[str] = Counter()
        self._url, self._rate = url, rate
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Submit until `stop`; returns once every request is answered or has failed."""
        timeout = aiohttp.ClientTimeout(total=30)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        loop = asyncio.get_running_loop()
        async with (
            aiohttp.ClientSession(
                self._url, timeout=timeout, connector=connector, trust_env=False
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            start, number = loop.time(), 0
            while not self._stop.is_set():
                number += 1
                group.create_task(self._submit(session, number))
                await asyncio.sleep(max(0.0, start + number / self._rate - loop.time()))

    def stop(self) -> None:
        self._stop.set()

    async def _submit(self, session: aiohttp.ClientSession, number: int) -> None:
        key = f"deploy-{number}"
        # Some are running when their worker gets SIGTERM, a few for longer than it then drains.
        seconds = 0.0 if number % 20 else 0.5 if number % 40 else 4 * DRAIN_SECONDS
        body = {"task": "chaos.slow", "payload": {"key": key, "seconds": seconds}}
        try:
            async with session.post("/v1/jobs", json=body) as answer:
                data = await answer.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.failed[type(error).__name__] += 1
        else:
            if answer.status == 202:
                self.accepted.append(msgspec.json.decode(data)["id"])
            else:
                self.failed[str(answer.status)] += 1


async def roll(stage: Stage, rate: float) -> RestartResult:
    """Restart every API and worker of the stage, one after another."""
    load = Load(f"http://127.0.0.1:{stage.front.port}", rate)
    start = time.monotonic()
    running = asyncio.create_task(load.run())
    codes: list[int | None] = []
    try:
        for number, api in enumerate(stage.apis):
            codes.append(await api.end(signal.SIGTERM))
            stage.start_api(number)
            await _until(lambda number=number: _serves(stage, number))
        for worker in stage.workers:
            codes.append(await worker.end(signal.SIGTERM))
            worker.start()
            await _until(lambda worker=worker: works(stage, worker))
    finally:
        load.stop()
        await running
    seconds = time.monotonic() - start
    client = stage.client()
    try:
        records = await _final(client, load.accepted)
    finally:
        await client.aclose()
    outcomes = Counter(line.outcome for record in records for line in attempts(record))
    lost = sum(record.get("state") != "succeeded" for record in records)
    charged = sum(
        count for name, count in outcomes.items() if name not in ("succeeded", "released")
    )
    requests = len(load.accepted) + sum(load.failed.values())
    return RestartResult(
        seconds, requests, dict(load.failed), lost, charged, outcomes["released"], codes
    )


async def _until(fact: Any) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not await fact():
            await asyncio.sleep(0.05)


async def _serves(stage: Stage, number: int) -> bool:
    port = stage.api_ports[number]
    return await ready(port) and stage.front.replicas[port]


async def works(stage: Stage, worker: Process) -> bool:
    client = stage.client()
    try:
        names = await client.zrange(f"{PREFIX}workers", 0, -1)
    finally:
        await client.aclose()
    return any(f"-{worker.pid}-" in name for name in names)


async def _final(client: Any, ids: list[str]) -> list[dict[str, str]]:
    """The records once all are final, or after TIMEOUT_SECONDS."""
    records: list[dict[str, str]] = []
    end = time.monotonic() + TIMEOUT_SECONDS
    for start in range(0, len(ids), 1000):
        while True:
            pipe = client.pipeline(transaction=False)
            for id in ids[start : start + 1000]:
                pipe.hgetall(f"{PREFIX}job:{id}")
            batch = await pipe.execute()
            if all(record.get("ended") for record in batch) or time.monotonic() > end:
                break
            await asyncio.sleep(0.1)
        records += batch
    return records


async def _main(rate: float) -> RestartResult:
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        Path(directory).chmod(0o711)  # PostgreSQL's user must reach its data
        async with open_stage(Path(directory), settings=SETTINGS) as stage:
            return await roll(stage, rate)


def main() -> int:
    """Exit code 0 if no request failed and no job was lost or charged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=500.0, help="requests per second (500)")
    result = asyncio.run(_main(parser.parse_args().rate))
    rate = f"{result.requests / result.seconds:.0f} per second"
    lost = f"failed: {result.failed or 0}; lost: {result.lost}"
    lines = (
        f"{result.requests} requests in {result.seconds:.1f} s, {rate}",
        f"{lost}; charged: {result.charged}; handed back: {result.released}",
        f"exit codes: {result.codes}",
    )
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if result.failed or result.lost or result.charged or any(result.codes) else 0


if __name__ == "__main__":
    sys.exit(main())
