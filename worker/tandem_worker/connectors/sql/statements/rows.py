"""Rows of a database: fetched in chunks, written as JSON."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec

from tandem_worker.encoding import non_finite
from tandem_worker.errors import Permanent

FIRST_CHUNK_ROWS = 50
MAX_CHUNK_ROWS = 2000
CHUNK_BYTES = 1 << 20

Row = dict[str, Any]


class Column(msgspec.Struct, frozen=True):
    """A column of a result: its name and the database's name for its type."""

    name: str
    type: str


def check_distinct(names: Sequence[str]) -> None:
    """Refuse two columns with the same name: an object would silently lose one of them."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise Permanent("sql_error", f"two columns are named {name!r}: rename one with AS")
        seen.add(name)


def read_only(connection: str) -> Permanent:
    """The error for a write through a connection without `mode=rw`."""
    message = f"the connection {connection!r} is read-only: its URL lacks mode=rw"
    return Permanent("read_only", message)


def too_many(limit: int) -> Permanent:
    """The error for a result with more rows than `limit`."""
    return Permanent("too_large", f"the result has more than {limit} rows")


async def chunks(fetch: Callable[[int], Awaitable[list[Row]]]) -> AsyncIterator[list[Row]]:
    """All rows, in chunks of about CHUNK_BYTES; `fetch` returns the next rows, at most so many."""
    size = FIRST_CHUNK_ROWS
    while rows := await fetch(size):
        yield rows
        if len(rows) < size:
            return
        size = _next_size(size, rows)


def _next_size(size: int, rows: Sequence[Row]) -> int:
    sample = rows[:: max(1, len(rows) // 16)]
    average = max(1.0, sum(map(_bytes, sample)) / len(sample))
    # At most 4 times as many: one chunk of small rows says little about the next.
    return max(1, min(MAX_CHUNK_ROWS, size * 4, int(CHUNK_BYTES / average)))


def _bytes(row: Row) -> int:
    return sum(len(value) if isinstance(value, str | bytes) else 16 for value in row.values())


def to_json(row: Row) -> msgspec.Raw:
    """The row as a JSON object, without loss.

    Integers of any size and finite floats are numbers; decimals are strings (`"19.90"`), as are NaN
    and the infinities; times are RFC 3339 (without an offset if the database stores none),
    intervals ISO 8601 durations, bytes base64, UUIDs and network addresses their usual text; arrays
    are arrays, ranges and composites objects.
    """
    for value in row.values():
        kind = type(value)
        if kind not in _ENCODABLE and not (kind is float and math.isfinite(value)):
            row = {name: plain(value) for name, value in row.items()}
            break
    try:
        return msgspec.Raw(msgspec.json.encode(row))
    except UnicodeEncodeError:
        raise Permanent("sql_error", "a value is not valid Unicode text") from None


# Types that msgspec encodes as described above.
_ENCODABLE = frozenset({int, str, bool, type(None), bytes})


def plain(value: Any) -> Any:
    """The value as one that msgspec encodes as described above, at every depth."""
    match value:
        case float():
            return value if math.isfinite(value) else non_finite(value)
        case list() | tuple():
            return [plain(item) for item in value]
        case dict():
            return {str(name): plain(item) for name, item in value.items()}
    return value
