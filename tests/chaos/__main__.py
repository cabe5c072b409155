"""`make chaos ARGS="--seconds 600 --seed 7"`: as long as asked; the figures, and every broken promise."""

import argparse
import asyncio
import random
import sys
from pathlib import Path

from tests.chaos.run import Plan, perform


def main() -> int:
    """0 if every promise was kept, 1 if not."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults go on (60)")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1_000_000), help="repeats an earlier schedule"
    )
    parser.add_argument(
        "--pause", type=float, default=2.5, help="seconds between two faults, on average (2.5)"
    )
    parser.add_argument("--clients", type=int, default=16, help="how many submit at once (16)")
    parser.add_argument(
        "--fsync", choices=("always", "everysec"), default="always", help="of Redis (always)"
    )
    parser.add_argument(
        "--worker",
        default="tandem_worker",
        help="module run as the worker, with arguments (tandem_worker)",
    )
    parser.add_argument(
        "--keep", type=Path, help="directory for the processes' logs and data; it must be empty"
    )
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True)
    plan = Plan(
        options.seed,
        options.seconds,
        options.pause,
        options.clients,
        fsync=options.fsync,
        worker=options.worker,
    )
    again = f"--seed {plan.seed} --seconds {plan.seconds:g} --pause {plan.pause:g} --clients {plan.clients}"
    again += f" --fsync {plan.fsync}" + (
        f" --worker '{plan.worker}'" if plan.worker != "tandem_worker" else ""
    )
    print(f"seed {plan.seed}", flush=True)
    result = asyncio.run(perform(plan, options.keep))
    for name, value in result.figures.items():
        print(f"{name}: {value}")
    for sentence in result.broken[:100]:
        print(f"BROKEN {sentence}")
    print(f"{len(result.broken)} broken promises")
    if result.broken:
        print(f'the same again: make chaos ARGS="{again}"')
    return 1 if result.broken else 0


if __name__ == "__main__":
    sys.exit(main())
