"""How long jobs stand still when their worker is killed: `python -m tests.chaos.recovery --jobs 100`."""

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

from tests.chaos.deploy import PATIENCE, works
from tests.chaos.stage import LEASE, PREFIX, open_stage


async def recover(count: int) -> list[float]:
    """Seconds from SIGKILL of the worker that ran all of so many jobs to the next start of each, sorted."""
    with tempfile.TemporaryDirectory(prefix="tandem-") as directory:
        Path(directory).chmod(0o711)  # PostgreSQL's own user passes through it
        settings = {"TANDEM_CONCURRENCY": str(count)}
        async with open_stage(Path(directory), apis=1, workers=2, settings=settings) as stage:
            doomed, other = stage.workers
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
                async with asyncio.timeout(PATIENCE):
                    while len([began for began in await _began(client, ids) if began]) < count:
                        await asyncio.sleep(0.05)
                    other.start()
                    while not await works(stage, other):
                        await asyncio.sleep(0.05)
                    killed = time.time()
                    await doomed.end(signal.SIGKILL)
                    while min(again := await _began(client, ids)) < killed:
                        await asyncio.sleep(0.05)
            finally:
                await client.aclose()
            return sorted(began - killed for began in again)


async def _began(client: Any, ids: list[str]) -> list[float]:
    """When the present attempt of each began, in seconds since the epoch; 0 if none runs."""
    pipe = client.pipeline(transaction=False)
    for id in ids:
        pipe.hmget(f"{PREFIX}job:{id}", "state", "began")
    return [
        int(began) / 1e6 if state == "running" else 0.0 for state, began in await pipe.execute()
    ]


def main() -> int:
    """0 if all ran again within the lease and two seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100, help="that run on the worker (100)")
    found = asyncio.run(recover(parser.parse_args().jobs))
    middle = found[len(found) // 2]
    sys.stdout.write(
        f"{len(found)} jobs, lease {LEASE:g} s: half run again after {middle:.2f} s, all {found[-1]:.2f} s\n"
    )
    return 0 if found[-1] <= LEASE + 2 else 1


if __name__ == "__main__":
    sys.exit(main())
