"""Rows on their way out of a database: fetched in portions, written as JSON."""

import math
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import date, datetime
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Any, Protocol

import msgspec

from tandem_worker.errors import TaskError

FIRST_PORTION = 50  # rows
MAX_PORTION = 2000
PORTION_BYTES = 1 << 20

Row = dict[str, Any]


class Column(msgspec.Struct, frozen=True):
    """A column of a result: its name and the database's name for its type."""

    name: str
    type: str


class Rows(Protocol):
    """The rows of one running statement; memory holds one portion of them at a time."""

    @property
    def columns(self) -> list[Column]:
        """The columns; SQLite, whose columns have no types of their own, says what the rows so far had in them."""

    def __aiter__(self) -> AsyncIterator[list[Row]]:
        """The rows in portions, as the database sends them."""


class Text(Protocol):
    """The rows of one running statement as the database writes them down itself, in pieces of about 1 MiB."""

    columns: list[Column]
    count: int  # rows so far

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The pieces; they end anywhere."""


def distinct(names: Sequence[str]) -> None:
    """Refuses two columns of one name: an object would silently lose one of them."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise TaskError(
                "sql_error",
                f"two columns are named {name!r}: give one another name (AS …)",
                retryable=False,
            )
        seen.add(name)


def read_only(connection: str) -> TaskError:
    """Why nothing is written through a connection of this name."""
    message = f"the connection {connection!r} is read-only: its URL does not say mode=rw"
    return TaskError("read_only", message, retryable=False)


def too_many(limit: int) -> TaskError:
    """Why a result with more rows than this ends the job."""
    return TaskError("too_large", f"the result has more than {limit} rows", retryable=False)


def portion(size: int, rows: Sequence[Row]) -> int:
    """How many rows to ask for next, after a portion of `size`: so many as make about PORTION_BYTES."""
    if not rows:
        return size
    sample = rows[:: max(1, len(rows) // 16)]
    weight = max(1.0, sum(map(_weight, sample)) / len(sample))
    # At most 4 times as many: one portion of small rows says little about the next.
    return max(1, min(MAX_PORTION, size * 4, int(PORTION_BYTES / weight)))


def _weight(row: Row) -> int:
    return sum(len(value) if isinstance(value, str | bytes) else 16 for value in row.values())


# ------------------------------------------------------------------------------------------ as JSON


def to_json(row: Row) -> msgspec.Raw:
    """The row as a JSON object that loses nothing.

    Integers of any size and finite floats are numbers; decimals are strings (`"19.90"`), as are NaN
    and the infinities; times are RFC 3339 (without an offset where the database knows none),
    intervals ISO 8601 durations, bytes base64, UUIDs and network addresses their usual text; arrays
    are arrays, ranges and composites objects.
    """
    for value in row.values():
        kind = type(value)
        if kind not in _WRITTEN and not (kind is float and math.isfinite(value)):
            row = {name: plain(value) for name, value in row.items()}
            break
    try:
        return msgspec.Raw(msgspec.json.encode(row, enc_hook=plain))
    except UnicodeEncodeError:
        raise TaskError("sql_error", "a value is no valid Unicode text", retryable=False) from None


# What msgspec writes as promised without a look.
_WRITTEN = frozenset({int, str, bool, type(None), bytes})


def plain(value: Any) -> Any:
    """The value, or what stands for it in JSON, in all its depth."""
    convert = _CONVERSIONS.get(type(value))
    if convert is not None:
        return convert(value)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "items"):  # JSON, or a composite value
        return {str(name): plain(one) for name, one in value.items()}
    if hasattr(value, "lower_inc"):  # a range
        names = ("isempty", "lower", "upper", "lower_inc", "upper_inc")
        return {name: plain(getattr(value, name)) for name in names}
    return value.as_string() if hasattr(value, "as_string") else value  # bits


def _float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _day(value: date) -> date | str:
    # asyncpg's stand-ins for the infinities of PostgreSQL
    return "infinity" if value == date.max else "-infinity" if value == date.min else value


def _moment(value: datetime) -> datetime | str:
    bare = value.replace(tzinfo=None)
    return "infinity" if bare == _LAST else "-infinity" if bare == _FIRST else value


_FIRST, _LAST = datetime.min, datetime.max  # noqa: DTZ901 - compared without their zones


_CONVERSIONS: dict[type, Callable[[Any], Any]] = {
    float: _float,
    date: _day,
    datetime: _moment,
    **dict.fromkeys(
        (IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network), str
    ),
    str: str,
    int: int,
}
