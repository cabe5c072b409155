"""Figures and their tables: one value per round; ratios are taken within each round."""

import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from tandem_shared.dev.servers import redis_program, redis_version

OURS = "Tandem"


class Figure(msgspec.Struct, frozen=True):
    """What one system achieved in one round."""

    what: str
    unit: str
    system: str
    value: float


class Row(msgspec.Struct, frozen=True):
    """One figure of one system over all rounds; `ratios` are our value divided by this one."""

    item: int
    what: str
    unit: str
    system: str
    values: list[float]
    ratios: list[float]


def rows(item: int, rounds: Sequence[Sequence[Figure]]) -> list[Row]:
    """One row per figure and system, in the order in which the figures were measured."""
    by_figure: dict[tuple[str, str], dict[str, list[float]]] = {}
    for figures in rounds:
        for figure in figures:
            systems = by_figure.setdefault((figure.what, figure.unit), {})
            systems.setdefault(figure.system, []).append(figure.value)
    return [
        Row(item, what, unit, system, _rounded(values), _ratios(systems, system))
        for (what, unit), systems in by_figure.items()
        for system, values in systems.items()
    ]


def _ratios(systems: Mapping[str, list[float]], system: str) -> list[float]:
    """Our values divided by those of another system, round by round."""
    if system == OURS:
        return []
    pairs = zip(systems.get(OURS, []), systems[system], strict=False)
    return _rounded(ours / other for ours, other in pairs if other)


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 4) for value in values]


def written(value: float) -> str:
    """With three significant digits, or all digits before the point."""
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2}f}"


def spread(values: Sequence[float]) -> str:
    """`median (min to max)`."""
    if not values:
        return ""
    if len(values) == 1:
        return written(values[0])
    return (
        f"{written(statistics.median(values))} ({written(min(values))} to {written(max(values))})"
    )


def table(title: str, rows: Sequence[Row]) -> list[str]:
    """The table in Markdown, line by line."""
    lines = [
        f"## {title}",
        "",
        "| figure | system | median (min to max) | Tandem ÷ system, per round |",
        "|---|---|---|---|",
    ]
    last = ""
    for row in rows:
        figure = f"{row.what}, {row.unit}"
        shown = "" if figure == last else figure
        lines.append(f"| {shown} | {row.system} | {spread(row.values)} | {spread(row.ratios)} |")
        last = figure
    return [*lines, ""]


def machine_facts() -> dict[str, Any]:
    """The date, the machine and the versions that the figures depend on."""
    return {
        "measured": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "redis_server": redis_version(redis_program()),
        **{name: version(name) for name in ("redis", "hiredis", "uvloop", "fastapi")},
    }


def write(folder: Path, results: Mapping[str, Any], tables: Sequence[str]) -> None:
    """Write RESULTS.md and results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n"
    )
    machine = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in results["machine"].items()
    )
    peers = ", ".join(f"{name} {value}" for name, value in results["peers"].items())
    text = f"""# The latest figures

Written by `make bench`; README.md explains what is measured and how.
All of Tandem's features are on: ledger, events, metrics. AOF everysec for every system.
{results["rounds"]} rounds, roughly {results["seconds"]:g} s per measurement; {machine}.
{f"Peers: {peers}." if peers else "Without peers."}

"""
    (folder / "RESULTS.md").write_text(text + "\n".join(tables) + "\n", encoding="utf-8")
