"""The catalogue: what workers publish about their tasks, and all that the API knows of them."""

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import structlog

from tandem_shared.times import parse_duration

MAX_STARTS_PER_SECOND = 10_000  # starts a second that a rate may allow
MAX_START_INTERVAL_SECONDS = 86_400.0  # seconds that a rate may set between two starts
MAX_CONCURRENCY = 1_000_000  # attempts at once that a limit may allow


class CatalogueEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One task as its worker describes it. Schemas are JSON Schema 2020-12."""

    name: str
    summary: str = ""
    queue: str = "default"
    payload_schema: dict[str, Any]
    result_schema: dict[str, Any]
    # {"timeout": seconds, "priority": …, "retry": {the fields of RetryPolicy}}, and where set
    # "concurrency" and "rate"
    defaults: dict[str, Any]
    example: Any = None  # a payload that the schema accepts
    # a job runs only on workers whose version of its task is at least the one it was validated with
    version: int = 1


log = structlog.get_logger()

_entry = msgspec.json.Decoder(CatalogueEntry)


def encode(entry: CatalogueEntry) -> bytes:
    """The entry as the catalogue holds it, in one spelling, so that equal entries have equal bytes."""
    return msgspec.json.encode(entry, order="deterministic")


def decode(data: bytes) -> CatalogueEntry:
    """The inverse of `encode`."""
    return _entry.decode(data)


def decode_all(rows: Mapping[bytes, bytes]) -> list[CatalogueEntry]:
    """The entries among a catalogue's rows, by name: one that this version cannot read costs none of the others."""
    found: list[CatalogueEntry] = []
    for name, data in rows.items():
        try:
            found.append(decode(data))
        except msgspec.DecodeError as error:
            task = name.decode(errors="replace")
            log.warning("an entry of the catalogue cannot be read", task=task, error=str(error))
    return sorted(found, key=lambda entry: entry.name)


class Limits(NamedTuple):
    """What limits a task over all workers. A start is due every `every` µs; `burst` may come at once. 0: no limit."""

    slots: int
    every: int
    burst: int


_rate = re.compile(r"([0-9]+)/((?:[0-9]+(?:\.[0-9]+)?)?(?:ms|s|m|h|d))")


def parse_limits(concurrency: int | None, rate: str | None) -> Limits:
    """The limits as the queue takes them, of `100/m`, `5/10s`. Raises ValueError, in words for the writer.

    The burst is what a rate allows in a tenth of a second, so that workers need not ask for every
    start, and at least one: up to ten a second, starts are at least `every` apart.
    """
    if concurrency is not None and not 1 <= concurrency <= MAX_CONCURRENCY:
        raise ValueError(
            f"concurrency={concurrency!r}: it is a number from 1 to {MAX_CONCURRENCY:,}"
        )
    if rate is None:
        return Limits(concurrency or 0, 0, 0)
    match = _rate.fullmatch(rate)
    count = int(match[1]) if match else 0
    period = match[2] if match else ""
    span = parse_duration(period if period[:1].isdigit() else f"1{period}") if match else 0.0
    if not count or not span:
        raise ValueError(
            f"rate={rate!r}: write how many may start in which time, such as 10/s, 100/m or 5/10s"
        )
    if not 1 / MAX_STARTS_PER_SECOND <= span / count <= MAX_START_INTERVAL_SECONDS:
        raise ValueError(
            f"rate={rate!r}: it must be from one a day to {MAX_STARTS_PER_SECOND:,} a second"
        )
    return Limits(concurrency or 0, math.ceil(span * 1e6 / count), max(1, int(count / span / 10)))


def digest(entries: list[CatalogueEntry]) -> str:
    """Names a worker's set of tasks and versions; workers with equal sets share what Redis keeps of it."""
    known = sorted(f"{entry.name}@{entry.version}" for entry in entries)
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]
