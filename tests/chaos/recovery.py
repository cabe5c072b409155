"""How long a killed worker's jobs stand still: `python -m tests.chaos.recovery --jobs 100`."""

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from tests.chaos.deploy import TIMEOUT_SECONDS, works
from tests.chaos.stage import LEASE_SECONDS, PREFIX, open_stage


async def recover(count: int) -> list[float]:
    """Kill the worker that runs `count` jobs; the seconds until each runs again, sorted."""
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        Path(directory).chmod(0o711)  # PostgreSQL's user must reach its data
        settings = {"TANDEM_CONCURRENCY": str(count)}
        async with open_stage(Path(directory), apis=1, workers=2, settings=settings) as stage:
            victim, other = stage.workers
            await other.end(signal.SIGTERM)
            client = stage.client()
            ids: list[str] = []
            try:
                job = {
                    "task": "chaos.slow",
                    "payload": {"key": "k", "seconds": 600.0},
                    "options": {"timeout": "1h"},
                }
                async with (
                    aiohttp.ClientSession(
                        f"http://127.0.0.1:{stage.front.port}", trust_env=False
                    ) as session,
                    session.post("/v1/jobs/bulk", json=[job] * count) as answer,
                ):
                    ids = [one["id"] for one in msgspec.json.decode(await answer.read())]
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    while not all(await _began(client, ids)):
                        await asyncio.sleep(0.05)
                    other.start()
                    while not await works(stage, other):
                        await asyncio.sleep(0.05)
                    killed = time.time()
                    await victim.end(signal.SIGKILL)
                    while min(again := await _began(client, ids)) < killed:
                        await asyncio.sleep(0.05)
            finally:
                await client.aclose()
            return sorted(began - killed for began in again)


async def _began(client: Any, ids: list[str]) -> list[float]:
    """When each job's running attempt began, in seconds since the epoch; 0 if it is not running."""
    pipe = client.pipeline(transaction=False)
    for id in ids:
        pipe.hmget(f"{PREFIX}job:{id}", "state", "began")
    return [
        int(began) / 1e6 if state == "running" else 0.0 for state, began in await pipe.execute()
    ]


def main() -> int:
    """Exit code 0 if all ran again within the lease plus two seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100, help="number of jobs on the worker (100)")
    waits = asyncio.run(recover(parser.parse_args().jobs))
    half, last = waits[len(waits) // 2], waits[-1]
    times = f"half ran again after {half:.2f} s, all after {last:.2f} s"
    sys.stdout.write(f"{len(waits)} jobs, lease {LEASE_SECONDS:g} s: {times}\n")
    return 0 if last <= LEASE_SECONDS + 2 else 1


if __name__ == "__main__":
    sys.exit(main())
