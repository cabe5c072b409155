"""Figures and their tables: a figure has one value a round, a ratio is taken within each round."""

import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from tandem_shared.dev.servers import redis_program, redis_version

OURS = "Tandem"


class Figure(msgspec.Struct, frozen=True):
    """What one system did in one round. Where `against` names no system, the ratio is to every other one's."""

    what: str
    unit: str
    system: str
    value: float


class Row(msgspec.Struct, frozen=True):
    """The same figure of all rounds, and our value divided by this one's, by round."""

    item: int
    what: str
    unit: str
    system: str
    values: list[float]
    ratios: list[float]


def rows(item: int, rounds: Sequence[Sequence[Figure]]) -> list[Row]:
    """In the order in which the figures came."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for figures in rounds:
        for one in figures:
            found.setdefault((one.what, one.unit, one.system), []).append(one.value)
    order = list(dict.fromkeys(key[:2] for key in found))
    made = []
    for (what, unit, system), values in sorted(
        found.items(), key=lambda pair: order.index(pair[0][:2])
    ):
        ours = found.get((what, unit, OURS), [])
        ratios = (
            [mine / other for mine, other in zip(ours, values, strict=False) if other]
            if system != OURS
            else []
        )
        made.append(
            Row(
                item,
                what,
                unit,
                system,
                [round(value, 4) for value in values],
                [round(r, 4) for r in ratios],
            )
        )
    return made


def written(value: float) -> str:
    """With three digits that count, or all of a whole number."""
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2}f}"


def spread(values: Sequence[float]) -> str:
    """`median (least to most)`."""
    if not values:
        return ""
    if len(values) == 1:
        return written(values[0])
    return (
        f"{written(statistics.median(values))} ({written(min(values))} to {written(max(values))})"
    )


def table(title: str, found: Sequence[Row]) -> list[str]:
    """Lines of Markdown."""
    lines = [
        f"## {title}",
        "",
        "| what | system | median (least to most) | Tandem ÷ it, by round |",
        "|---|---|---|---|",
    ]
    before = ""
    for row in found:
        what = f"{row.what}, {row.unit}"
        lines.append(
            f"| {what if what != before else ''} | {row.system} | {spread(row.values)} | {spread(row.ratios)} |"
        )
        before = what
    return [*lines, ""]


def facts() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "measured": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "redis_server": redis_version(redis_program()),
        **{name: version(name) for name in ("redis", "hiredis", "uvloop", "fastapi")},
    }


def write(folder: Path, made: dict[str, Any], tables: Sequence[str]) -> None:
    """RESULTS.md and results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_bytes(
        msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n"
    )
    machine = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in made["machine"].items()
    )
    peers = ", ".join(f"{name} {value}" for name, value in made["peers"].items())
    text = f"""# The last figures

Written by `make bench`; README.md says what is measured and how. Tandem has everything on: ledger, events, metrics.
{made["rounds"]} rounds, about {made["seconds"]:g} s a measurement, AOF everysec for all; {machine}.
{f"Peers: {peers}." if peers else "Without peers."}

"""
    (folder / "RESULTS.md").write_text(text + "\n".join(tables) + "\n", encoding="utf-8")
