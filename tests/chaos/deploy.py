"""A rolling restart of 2 APIs and 3 workers while jobs come in: `python -m tests.chaos.deploy --rate 500`.

A client gives each request one try. Before each next process ends, the one before is back, as a
deployment does it.
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

DRAIN = 1.0  # seconds that a worker finishes its jobs; what takes longer is handed back
SETTINGS = {"TANDEM_DRAIN": f"{DRAIN:g}s"}  # of the stage
PATIENCE = 60.0  # seconds, of a deployment for a process that starts, and for the last jobs


class Rolled(NamedTuple):
    """What came of it. `failed`: requests by what was wrong; `lost`: accepted jobs that did not succeed."""

    seconds: float
    requests: int
    failed: dict[str, int]
    lost: int
    charged: int  # attempts beyond the one of each job
    released: int
    codes: list[int | None]  # of the processes that ended


class Load:
    """Submits jobs at a steady rate over kept connections, each with one request."""

    def __init__(self, url: str, rate: float) -> None:
        self.accepted: list[str] = []
        self.failed: Counter[str] = Counter()
        self._url, self._rate = url, rate
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Until `stop`; every request is answered, or has failed, when this returns."""
        timeout = aiohttp.ClientTimeout(total=30)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        loop = asyncio.get_running_loop()
        async with (
            aiohttp.ClientSession(
                self._url, timeout=timeout, connector=connector, trust_env=False
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            begun, number = loop.time(), 0
            while not self._stop.is_set():
                number += 1
                group.create_task(self._submit(session, number))
                await asyncio.sleep(max(0.0, begun + number / self._rate - loop.time()))

    def stop(self) -> None:
        self._stop.set()

    async def _submit(self, session: aiohttp.ClientSession, number: int) -> None:
        key = f"deploy-{number}"
        # Some run when their worker is told to end, and a few for longer than it then waits.
        seconds = 0.0 if number % 20 else 0.5 if number % 40 else 4 * DRAIN
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


async def roll(stage: Stage, rate: float) -> Rolled:
    """Restarts every API and worker of the stage, one after the other."""
    load = Load(f"http://127.0.0.1:{stage.front.port}", rate)
    begun = time.monotonic()
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
    seconds = time.monotonic() - begun
    client = stage.client()
    try:
        records = await _final(client, load.accepted)
    finally:
        await client.aclose()
    outcomes = Counter(one.outcome for record in records for one in attempts(record))
    lost = sum(record.get("state") != "succeeded" for record in records)
    charged = sum(
        count for word, count in outcomes.items() if word not in ("succeeded", "released")
    )
    requests = len(load.accepted) + sum(load.failed.values())
    return Rolled(seconds, requests, dict(load.failed), lost, charged, outcomes["released"], codes)


async def _until(fact: Any) -> None:
    async with asyncio.timeout(PATIENCE):
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
    """The records once all are final, or as they are when that takes too long."""
    records: list[dict[str, str]] = []
    end = time.monotonic() + PATIENCE
    for start in range(0, len(ids), 1000):
        while True:
            pipe = client.pipeline(transaction=False)
            for id in ids[start : start + 1000]:
                pipe.hgetall(f"{PREFIX}job:{id}")
            found = await pipe.execute()
            if all(one.get("ended") for one in found) or time.monotonic() > end:
                break
            await asyncio.sleep(0.1)
        records += found
    return records


async def _main(rate: float) -> Rolled:
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        Path(directory).chmod(0o711)  # PostgreSQL's own user passes through it
        async with open_stage(Path(directory), settings=SETTINGS) as stage:
            return await roll(stage, rate)


def main() -> int:
    """0 if nothing failed, was lost or charged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second (500)")
    found = asyncio.run(_main(parser.parse_args().rate))
    lines = (
        f"{found.requests} requests in {found.seconds:.1f} s, {found.requests / found.seconds:.0f} a second",
        f"failed: {found.failed or 0}; lost: {found.lost}; charged: {found.charged}; handed back: {found.released}",
        f"exit codes: {found.codes}",
    )
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if found.failed or found.lost or found.charged or any(found.codes) else 0


if __name__ == "__main__":
    sys.exit(main())
