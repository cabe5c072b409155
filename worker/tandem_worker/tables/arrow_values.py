"""The values of Arrow columns as Python values, each in one form, of which none is rounded or cut.

Integers, floats, decimals, booleans, text, bytes, dates and times are Python's own, where those can
hold them; a 16- or 32-bit float is the number with the shortest digits for its width. Times that
Python cannot hold are RFC 3339 text, with nine digits in all values of a column that has
nanoseconds. Durations are ISO 8601 text, lists lists, structs and maps dicts; the keys of a map
become text.
"""

import struct
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from tandem_worker.tables.table import text

_PER_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}  # of a second's fraction
_MAX_NANO_MICROSECONDS = (1 << 63) // 1000 - 1  # that fit into 64 bits as nanoseconds
_OUT_OF_RANGE = "<value out of range"  # how Arrow writes what it cannot

Convert = Callable[[Any, bool], list[Any]]


def values(column: Any, fine: bool) -> list[Any]:
    """The values; `fine` for a column that `has_nanoseconds`.

    Raises ValueError, OverflowError, LookupError or ArrowException for what has no value here.
    """
    convert = next((convert for is_type, convert in _CONVERT if is_type(column.type)), None)
    found: list[Any] = column.to_pylist() if convert is None else convert(column, fine)
    return found


def may_have_nanoseconds(type: Any) -> bool:
    """Whether the type, or one within it, counts nanoseconds of a time."""
    if types.is_timestamp(type) or types.is_time(type):
        return bool(type.unit == "ns")
    if types.is_dictionary(type):
        return may_have_nanoseconds(type.value_type)
    return any(may_have_nanoseconds(type.field(at).type) for at in range(type.num_fields))


def has_nanoseconds(column: Any) -> bool:
    """Whether a time in the column, at any depth, is not of whole microseconds."""
    kind = column.type
    if not may_have_nanoseconds(kind):
        return False
    if types.is_nested(kind):
        return any(map(has_nanoseconds, _parts(column)))
    if types.is_dictionary(kind):
        return has_nanoseconds(column.dictionary)
    count = column.cast(pa.int64())
    rest = pc.subtract(count, pc.multiply(pc.divide(count, 1000), 1000))
    return pc.any(pc.not_equal(rest, 0)).as_py() is True


def beyond_micro(micro: Any, nano: Any) -> tuple[bool, bool]:
    """Whether 96-bit timestamps, read in both units, have nanoseconds, and fit into 64 bits so.

    What does not fit has wrapped around.
    """
    kind = micro.type
    if types.is_nested(kind):
        found = list(map(beyond_micro, _parts(micro), _parts(nano)))
        return any(fine for fine, _ in found), all(fits for _, fits in found)
    if kind == nano.type:
        return False, True
    counts = micro.cast(pa.int64())
    rest = pc.subtract(nano.cast(pa.int64()), pc.multiply(counts, 1000))  # wraps around, too
    fits = pc.less_equal(pc.abs(counts), _MAX_NANO_MICROSECONDS)
    return pc.any(pc.not_equal(rest, 0)).as_py() is True, pc.all(fits).as_py() is not False


def _parts(column: Any) -> list[Any]:
    """The columns within a nested one, without what its nulls hide."""
    if types.is_struct(column.type):
        return list(column.flatten())
    return [pc.list_flatten(_as_list(column))]


def _as_list(column: Any) -> Any:
    """A map as a list of its entries; lists are unchanged."""
    kind = column.type
    return column.cast(pa.list_(kind.field(0).type)) if types.is_map(kind) else column


def _cut(column: Any, items: Iterator[Any]) -> Iterator[list[Any] | None]:
    """The items of each list of the column."""
    for length in pc.list_value_length(column).to_pylist():
        yield None if length is None else list(islice(items, length))


def _lists(column: Any, fine: bool) -> list[Any]:
    return list(_cut(column, iter(values(pc.list_flatten(column), fine))))


def _maps(column: Any, fine: bool) -> list[Any]:
    entries = _as_list(column)
    keys, items = (values(part, fine) for part in pc.list_flatten(entries).flatten())
    names = [key if isinstance(key, str) else text(key) for key in keys]
    pairs = iter(zip(names, items, strict=True))
    return [None if one is None else _object(one) for one in _cut(entries, pairs)]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a map has the same key twice")
    return made


def _structs(column: Any, fine: bool) -> list[Any]:
    names = [column.type.field(at).name for at in range(column.type.num_fields)]
    if len(set(names)) < len(names):
        raise ValueError("a struct has two fields of the same name")
    rows = zip(*(values(part, fine) for part in column.flatten()), strict=True)
    return [
        dict(zip(names, row, strict=True)) if valid else None
        for valid, row in zip(column.is_valid().to_pylist(), rows, strict=True)
    ]


def _halves(column: Any, _fine: bool) -> list[Any]:
    return [None if value is None else _shortest_half(value) for value in column.to_pylist()]


def _shortest_half(value: float) -> float:
    exact = struct.pack("e", value)
    rounded = (float(f"{value:.{digits}g}") for digits in range(1, 5))
    return next((one for one in rounded if _is_half(one, exact)), value)


def _is_half(value: float, exact: bytes) -> bool:
    try:
        return struct.pack("e", value) == exact
    except OverflowError:
        return False


def _singles(column: Any, _fine: bool) -> list[Any]:
    # By way of the shortest text: as a double, 0.1 would have the digits of another number.
    texts = column.cast(pa.string()).to_pylist()
    return [None if text is None else float(text) for text in texts]


def _moments(column: Any, fine: bool) -> list[Any]:
    kind = column.type
    if fine and kind.unit == "ns":
        return _moment_texts(column)
    if kind.unit == "ns":
        column = column.cast(pa.timestamp("us", kind.tz))
    return _each(column, _moment_texts)


def _moment_texts(column: Any) -> list[Any]:
    """RFC 3339 with the digits of the column's unit."""
    found = [None if one is None else one.replace(" ", "T", 1) for one in _texts(column)]
    if column.type.tz is None:
        return found
    return [one if one is None or one[-1] == "Z" else f"{one[:-2]}:{one[-2:]}" for one in found]


def _dates(column: Any, _fine: bool) -> list[Any]:
    return _each(column, _texts)


def _each(column: Any, texts: Callable[[Any], list[Any]]) -> list[Any]:
    """Python's own values, and texts where those would lie outside the years 1 to 9999."""
    try:
        found: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):
        found = [_one(column[at : at + 1], texts) for at in range(len(column))]
    return found


def _one(column: Any, texts: Callable[[Any], list[Any]]) -> Any:
    try:
        return column.to_pylist()[0]
    except (OverflowError, ValueError):
        return texts(column)[0]


def _texts(column: Any) -> list[Any]:
    found: list[Any] = column.cast(pa.string()).to_pylist()
    wrong = next((one for one in found if one is not None and one.startswith(_OUT_OF_RANGE)), None)
    if wrong is not None:
        raise ValueError(f"{wrong.strip('<>')}, as {column.type}")
    return found


def _clocks(column: Any, fine: bool) -> list[Any]:
    kind, day = column.type, _PER_DAY[column.type.unit]
    counts = column.cast(pa.int32() if types.is_time32(kind) else pa.int64())
    if pc.any(pc.equal(counts, day)).as_py():
        end = f"24:00:00.{'0' * 9}" if fine and kind.unit == "ns" else "24:00:00"
        before = pc.if_else(pc.equal(counts, day), pa.scalar(0, counts.type), counts).cast(kind)
        found = _clocks(before, fine)
        return [
            end if count == day else value
            for count, value in zip(counts.to_pylist(), found, strict=True)
        ]
    least, most = pc.min(counts).as_py(), pc.max(counts).as_py()
    if least is not None and not 0 <= least <= most < day:
        raise ValueError(f"value out of range: {least if least < 0 else most}, as {kind}")
    if fine and kind.unit == "ns":
        return _texts(column)
    return list(column.to_pylist())


def _durations(column: Any, _fine: bool) -> list[Any]:
    unit = column.type.unit
    counts = column.cast(pa.int64()).to_pylist()
    return [None if count is None else _duration(count, unit) for count in counts]


def _duration(count: int, unit: str) -> str:
    """ISO 8601 in days and seconds, each with its sign, as PostgreSQL reads it: `P-1DT-0.5S`."""
    sign = "-" if count < 0 else ""
    days, rest = divmod(abs(count), _PER_DAY[unit])
    seconds, fraction = divmod(rest, 10 ** _DIGITS[unit])
    digits = f".{fraction:0{_DIGITS[unit]}}".rstrip("0") if fraction else ""
    day = f"{sign}{days}D" if days or not rest else ""
    return f"P{day}T{sign}{seconds}{digits}S" if rest else f"P{day}"


def _decoded(column: Any, fine: bool) -> list[Any]:
    return values(column.dictionary_decode(), fine)


_CONVERT: tuple[tuple[Callable[[Any], bool], Convert], ...] = (
    (types.is_timestamp, _moments),
    (types.is_date, _dates),
    (types.is_time, _clocks),
    (types.is_float32, _singles),
    (types.is_float16, _halves),
    (types.is_duration, _durations),
    (types.is_dictionary, _decoded),
    (types.is_struct, _structs),
    (types.is_map, _maps),
    (types.is_nested, _lists),
)
