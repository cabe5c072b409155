"""The catalogue: what workers publish about their tasks, and all the API knows about them."""

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import structlog

from tandem_shared.times import parse_duration

MAX_CONCURRENCY = 1_000_000
MAX_STARTS_PER_SECOND = 10_000
MAX_START_INTERVAL_SECONDS = 86_400.0


class CatalogueEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One task as its worker describes it; schemas are JSON Schema 2020-12."""

    name: str
    summary: str = ""
    queue: str = "default"
    payload_schema: dict[str, Any]
    result_schema: dict[str, Any]
    # {"timeout": seconds, "priority": …, "retry": {fields of RetryPolicy}}, and "concurrency" and
    # "rate" where they are set
    defaults: dict[str, Any]
    example: Any = None  # a payload that the schema accepts
    # A job runs only on workers whose version of its task is at least the one that validated it.
    version: int = 1


log = structlog.get_logger()

_entry = msgspec.json.Decoder(CatalogueEntry)


def encode(entry: CatalogueEntry) -> bytes:
    """The entry as Redis stores it; equal entries have equal bytes."""
    return msgspec.json.encode(entry, order="deterministic")


def decode_all(rows: Mapping[bytes, bytes]) -> list[CatalogueEntry]:
    """The entries of a stored catalogue, sorted by name; logs and skips unreadable ones."""
    entries: list[CatalogueEntry] = []
    for name, data in rows.items():
        try:
            entries.append(_entry.decode(data))
        except msgspec.DecodeError as error:
            task = name.decode(errors="replace")
            log.warning("skipping an unreadable catalogue entry", task=task, error=str(error))
    return sorted(entries, key=lambda entry: entry.name)


class Limits(NamedTuple):
    """A task's limits over all workers; 0 means unlimited.

    At most `slots` attempts run at once. A start is due every `every` µs, and `burst` starts may
    come at once.
    """

    slots: int
    every: int
    burst: int


_rate = re.compile(r"([0-9]+)/([0-9]+(?:\.[0-9]+)?)?(ms|s|m|h|d)")


def parse_limits(concurrency: int | None, rate: str | None) -> Limits:
    """The limits of a concurrency and a rate like `100/m` or `5/10s`.

    Raises ValueError, worded for the task's author. The burst is what the rate allows in 100 ms, so
    that workers need not ask for every start, and at least 1: up to 10/s, starts are at least
    `every` apart.
    """
    if concurrency is not None and not 1 <= concurrency <= MAX_CONCURRENCY:
        raise ValueError(
            f"concurrency={concurrency!r}: use a number between 1 and {MAX_CONCURRENCY:,}"
        )
    if rate is None:
        return Limits(concurrency or 0, 0, 0)
    match = _rate.fullmatch(rate)
    count = int(match[1]) if match else 0
    period = parse_duration(f"{match[2] or 1}{match[3]}") if match else 0.0
    if not count or not period:
        raise ValueError(
            f"rate={rate!r}: not a rate; use starts per period, such as 10/s, 100/m or 5/10s"
        )
    if not 1 / MAX_STARTS_PER_SECOND <= period / count <= MAX_START_INTERVAL_SECONDS:
        raise ValueError(
            f"rate={rate!r}: use a rate between 1 per day and {MAX_STARTS_PER_SECOND:,} per second"
        )
    burst = max(1, int(count / period / 10))
    return Limits(concurrency or 0, math.ceil(period * 1e6 / count), burst)


def digest(entries: list[CatalogueEntry]) -> str:
    """Identify a set of tasks and versions; workers with equal sets share its state in Redis."""
    known = sorted(f"{entry.name}@{entry.version}" for entry in entries)
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]
