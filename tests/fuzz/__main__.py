"""`make fuzz ARGS="--seconds 600 --seed 7"`: prints how jobs ended, and every broken law."""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tandem_shared.dev.servers import mongo_server
from tests.conftest import running
from tests.fuzz.run import fuzz, open_stage
from tests.postgres import postgres_server


def main() -> int:
    """0 if the law held, 1 if not."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (60)")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1_000_000), help="repeats an earlier run"
    )
    parser.add_argument("--case", type=int, help="run only the job of this number")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="tandem-"))
    directory.chmod(0o711)
    try:
        with ExitStack() as stack:
            postgres, mongo = postgres_server(directory), mongo_server(directory)
            stack.enter_context(running(postgres))
            stack.enter_context(running(mongo))
            urls = (postgres.url, mongo.url)
            return asyncio.run(_fuzz(directory, *urls, options))
    finally:
        shutil.rmtree(directory)


async def _fuzz(directory: Path, postgres: str, mongo: str, options: argparse.Namespace) -> int:
    first, cases = (options.case, 1) if options.case is not None else (0, 1 << 40)
    async with open_stage(directory, postgres, mongo) as stage:
        report = await fuzz(stage, options.seed, range(first, first + cases), options.seconds)
    for end, count in sorted(report.ends.items()):
        print(f"{count:7} {end}")
    for sentence in report.broken:
        print(f"BROKEN {sentence}")
    print(f"{sum(report.ends.values())} jobs, {len(report.broken)} broke the law")
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
