"""`make chaos ARGS="--seconds 600 --seed 7"`: prints the figures, and every broken promise."""

import argparse
import asyncio
import random
import sys
from pathlib import Path

from tests.chaos.run import Plan, perform


def main() -> int:
    """0 if every promise was kept, 1 if not."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="how long faults are injected (60)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=random.randrange(1_000_000),
        help="repeats the schedule of an earlier run",
    )
    parser.add_argument(
        "--pause",
        type=float,
        default=2.5,
        help="average number of seconds between two faults (2.5)",
    )
    parser.add_argument("--clients", type=int, default=16, help="number of concurrent clients (16)")
    parser.add_argument(
        "--fsync",
        choices=("always", "everysec"),
        default="always",
        help="appendfsync of Redis (always)",
    )
    parser.add_argument(
        "--worker",
        default="tandem_worker",
        help="module to run as the worker, with its arguments (tandem_worker)",
    )
    parser.add_argument(
        "--keep", type=Path, help="new directory in which the processes' logs and data are kept"
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
    print(f"seed {plan.seed}", flush=True)
    result = asyncio.run(perform(plan, options.keep))
    for name, value in result.figures.items():
        print(f"{name}: {value}")
    for sentence in result.broken[:100]:
        print(f"BROKEN {sentence}")
    print(f"{len(result.broken)} broken promises")
    if result.broken:
        print(f'to repeat this run: make chaos ARGS="{_arguments(plan)}"')
    return 1 if result.broken else 0


def _arguments(plan: Plan) -> str:
    """The command-line arguments that repeat a run."""
    arguments = f"--seed {plan.seed} --seconds {plan.seconds:g} --pause {plan.pause:g}"
    arguments += f" --clients {plan.clients} --fsync {plan.fsync}"
    return arguments if plan.worker == "tandem_worker" else f"{arguments} --worker '{plan.worker}'"


if __name__ == "__main__":
    sys.exit(main())
