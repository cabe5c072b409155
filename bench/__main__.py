"""`make bench`: Tandem and its peers in turn, three rounds, to RESULTS.md and results.json. README.md says how.

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

from bench import bare, depth, endpoints, figures, flow, queues
from bench.figures import Figure
from bench.processes import HERE, Broken
from bench.systems import PEERS, TANDEM, WEB, install
from tandem_shared.errors import TandemError

Measure = Callable[[float], AsyncIterator[Figure]]


def items(peers: Sequence[str]) -> dict[int, tuple[str, list[Measure]]]:
    """What is measured: the issue's number, its title, and the measurements in their order."""
    systems = (TANDEM, *peers)

    def each(measure: Callable[[str, float], AsyncIterator[Figure]]) -> list[Measure]:
        return [lambda seconds, name=name: measure(name, seconds) for name in systems]  # type: ignore[misc] # a default

    def web(measure: Callable[..., AsyncIterator[Figure]]) -> list[Measure]:
        return [lambda seconds: measure(seconds, peers=bool(peers))]

    return {
        1: ("No-op jobs", each(queues.throughput)),
        2: ("Through HTTP, end to end", web(endpoints.whole)),
        3: ("Latency", [*each(queues.latency), flow.latency]),
        4: ("Requests", web(endpoints.requests)),
        5: ("Jobs that wait", each(queues.waiting)),
        6: ("With many jobs waiting", [depth.measure]),
        7: ("Redis per job", each(queues.bytes_of)),
        8: ("Memory of processes", [*each(queues.memory), flow.memory]),
        9: ("Output", [flow.output]),
        10: ("Ledger", [flow.rows]),
        11: ("Built-in tasks beside the bare tool", [bare.measure]),
        12: ("More workers, and idle ones", [queues.scaling, *each(queues.quiet)]),
    }


def numbers(text: str) -> list[int]:
    """`1,3` as numbers of items."""
    found = [int(one) for one in text.split(",")]
    if not set(found) <= set(range(1, 13)):
        raise argparse.ArgumentTypeError("items have the numbers 1 to 12")
    return found


def peers_of(text: str) -> list[str]:
    """`arq,saq`, `all` or `none`."""
    named = {"all": list(PEERS), "none": []}.get(text, text.split(","))
    if unknown := set(named) - set(PEERS):
        raise argparse.ArgumentTypeError(
            f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}"
        )
    return named


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Tandem and its peers on one machine."
    )
    parser.add_argument(
        "--only", type=numbers, default=list(range(1, 13)), metavar="1,3", help="these items (all)"
    )
    parser.add_argument(
        "--peers", type=peers_of, default=list(PEERS), metavar="NAMES", help="arq,saq, all or none"
    )
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="about how long one measurement takes (4)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often everything is measured, in turn (3)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round of half a second: whether it runs at all"
    )
    parser.add_argument(
        "--to", type=Path, default=HERE, metavar="DIR", help="where the results go (bench/)"
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.seconds = 1, 0.5
    return options


async def measure(options: argparse.Namespace) -> dict[int, list[list[Figure]]]:
    """The figures of each item, by round."""
    if (
        own := asyncio.current_task()
    ) is not None:  # what was started ends with it, children of workers too
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, own.cancel)
    chosen = items(options.peers)
    found: dict[int, list[list[Figure]]] = {number: [] for number in options.only}
    began = perf_counter()
    for round_ in range(1, options.rounds + 1):
        for number in options.only:
            here: list[Figure] = []
            for one in chosen[number][1]:
                async for figure in one(options.seconds):
                    here.append(figure)
                    said = f"{figure.what}: {figures.written(figure.value)} {figure.unit}"
                    print(
                        f"{perf_counter() - began:5.0f} s, round {round_}, {number}: {figure.system}, {said}",
                        flush=True,
                    )
            found[number].append(here)
    return found


def versions(peers: Sequence[str]) -> dict[str, str]:
    """The releases that were measured, by the pins."""
    found = {}
    for name in peers:
        wanted = "taskiq-redis" if name == "taskiq" else name
        for line in (HERE / "peers" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{wanted}=="):
                found[wanted] = line.partition("==")[2]
    return found


def main() -> int:
    """0 whatever the figures are, 1 when something did not run."""
    options = parse()
    try:
        install(
            [
                *options.peers,
                *([WEB, "arq"] if options.peers and {2, 4} & set(options.only) else []),
            ]
        )
        machine = figures.facts()
        found = uvloop.run(measure(options))
    except (Broken, TandemError, OSError, subprocess.SubprocessError) as error:
        print(f"the benchmark did not run: {error}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    titles = items(options.peers)
    rows = {number: figures.rows(number, rounds) for number, rounds in found.items()}
    tables = [
        line
        for number, some in rows.items()
        for line in figures.table(f"{number}. {titles[number][0]}", some)
    ]
    print("\n".join(("", *tables)))
    made = {
        "machine": machine, "peers": versions(options.peers), "rounds": options.rounds, "seconds": options.seconds,
        "figures": [row for some in rows.values() for row in some],
    }  # fmt: skip
    figures.write(options.to, made, tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
