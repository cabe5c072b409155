"""`make bench`: measures Tandem and its peers in turn; see README.md.

Writes RESULTS.md and results.json.

    make bench ARGS="--only 1,3 --seconds 5"
    make bench ARGS="--peers none --quick"
"""

import argparse
import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from time import perf_counter

import uvloop

from bench import bare, crowds, depth, endpoints, figures, flow, queues
from bench.figures import Figure
from bench.processes import HERE, MeasurementFailed
from bench.systems import PEERS, TANDEM, WEB, install
from tandem_shared.errors import TandemError

Measure = Callable[[float], AsyncIterator[Figure]]


def items(peers: Sequence[str]) -> dict[int, tuple[str, list[Measure]]]:
    """Item number → its title, and its measurements in order."""
    systems = (TANDEM, *peers)

    def each(measure: Callable[[str, float], AsyncIterator[Figure]]) -> list[Measure]:
        return [lambda seconds, name=name: measure(name, seconds) for name in systems]  # type: ignore[misc] # mypy cannot type defaults of lambdas

    def web(measure: Callable[..., AsyncIterator[Figure]]) -> list[Measure]:
        return [lambda seconds: measure(seconds, peers=bool(peers))]

    return {
        1: ("No-op jobs", each(queues.throughput)),
        2: ("Through HTTP, end to end", web(endpoints.end_to_end)),
        3: ("Latency", [*each(queues.latency), flow.latency]),
        4: ("Requests", web(endpoints.requests)),
        5: ("Waiting jobs", each(queues.waiting)),
        6: ("With a large backlog", [depth.measure, crowds.measure]),
        7: ("Redis memory per job", each(queues.redis_per_job)),
        8: ("Memory of the processes", [*each(queues.memory), flow.memory]),
        9: ("Output", [flow.output]),
        10: ("Ledger", [flow.rows]),
        11: ("Built-in tasks compared with the bare library", [bare.measure]),
        12: ("More workers, and an idle worker", [queues.scaling, *each(queues.idle_worker)]),
    }


def numbers(text: str) -> list[int]:
    """`1,3` as item numbers."""
    chosen = [int(number) for number in text.split(",")]
    if not set(chosen) <= set(range(1, 13)):
        raise argparse.ArgumentTypeError(f"{text}: item numbers are 1 to 12")
    return chosen


def peers_of(text: str) -> list[str]:
    """`arq,saq`, `all` or `none`."""
    named = {"all": list(PEERS), "none": []}.get(text, text.split(","))
    if unknown := set(named) - set(PEERS):
        raise argparse.ArgumentTypeError(
            f"unknown peer: {', '.join(sorted(unknown))}; choose from {', '.join(PEERS)}"
        )
    return named


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Compares Tandem with its peers on this machine."
    )
    parser.add_argument(
        "--only",
        type=numbers,
        default=list(range(1, 13)),
        metavar="1,3",
        help="only these items (all)",
    )
    parser.add_argument(
        "--peers", type=peers_of, default=list(PEERS), metavar="NAMES", help="arq,saq, all or none"
    )
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="roughly how long one measurement takes (4)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often everything is measured, in turns (3)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round of half a second each, to see that it runs"
    )
    parser.add_argument(
        "--to", type=Path, default=HERE, metavar="DIR", help="directory for the results (bench/)"
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.seconds = 1, 0.5
    return options


async def measure(options: argparse.Namespace) -> dict[int, list[list[Figure]]]:
    """Item number → its figures, by round."""
    # On SIGTERM, cancel: leaving the contexts ends every process, children of workers included.
    if (task := asyncio.current_task()) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    chosen = items(options.peers)
    measured: dict[int, list[list[Figure]]] = {number: [] for number in options.only}
    start = perf_counter()
    for round_ in range(1, options.rounds + 1):
        for number in options.only:
            _, measurements = chosen[number]
            item: list[Figure] = []
            for measurement in measurements:
                async for figure in measurement(options.seconds):
                    item.append(figure)
                    progress = f"{perf_counter() - start:5.0f} s, round {round_}, {number}"
                    value = f"{figures.written(figure.value)} {figure.unit}"
                    print(f"{progress}: {figure.system}, {figure.what}: {value}", flush=True)
            measured[number].append(item)
    return measured


def versions(peers: Sequence[str]) -> dict[str, str]:
    """Peer → its pinned release."""
    releases = {}
    for name in peers:
        package = "taskiq-redis" if name == "taskiq" else name
        for line in (HERE / "peers" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{package}=="):
                releases[package] = line.partition("==")[2]
    return releases


def main() -> int:
    """Exit code 1 if something did not run; figures are not judged."""
    options = parse()
    try:
        with_web = options.peers and {2, 4} & set(options.only)
        install([*options.peers, *([WEB, "arq"] if with_web else [])])
        machine = figures.machine_facts()
        measured = uvloop.run(measure(options))
    except (MeasurementFailed, TandemError, OSError, subprocess.SubprocessError) as error:
        print(f"the benchmark failed: {error}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    titles = items(options.peers)
    rows = {number: figures.rows(number, rounds) for number, rounds in measured.items()}
    tables = [
        line
        for number, item in rows.items()
        for line in figures.table(f"{number}. {titles[number][0]}", item)
    ]
    print("\n".join(("", *tables)))
    results = {
        "machine": machine,
        "peers": versions(options.peers),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "figures": [row for item in rows.values() for row in item],
    }
    figures.write(options.to, results, tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
