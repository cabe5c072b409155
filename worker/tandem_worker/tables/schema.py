"""The columns of a table of objects: all of their keys, with types that fit all values."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from types import NoneType
from typing import Any

import msgspec

from tandem_worker.errors import Permanent
from tandem_worker.tables.table import ColumnBatch

MAX_COLUMNS = 10_000
_TYPES: dict[type, str] = {
    str: "string",
    bool: "bool",
    float: "double",
    bytes: "binary",
    datetime: "timestamptz",
}
_MAX_EXACT_CHARS = 16  # of 15 digits and a point: all such numbers are doubles
_EXACT_DOUBLE = 1 << 53  # integers up to here are exact as doubles


class ObjectColumns:
    """Collects the columns of the objects it is given, in the order in which their names appear."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._types: dict[str, set[str]] = {name: set() for name in names}

    def add(self, items: Sequence[Mapping[str, Any]]) -> None:
        """Raises Permanent `too_large` above MAX_COLUMNS."""
        self.add_names(items)
        for name, types in self._types.items():
            types.update(types_of([item.get(name) for item in items]))

    def add_names(self, items: Sequence[Mapping[str, Any]]) -> None:
        """Like `add`, for columns whose types do not matter."""
        for item in items:
            if not self._types.keys() >= item.keys():
                self._types |= {name: set() for name in item if name not in self._types}
                check_width(len(self._types))

    @property
    def names(self) -> list[str]:
        return list(self._types)

    @property
    def types(self) -> list[str]:
        """Arrow's names; a column of mixed or nested values is text."""
        return [common_type(types) for types in self._types.values()]

    def batch(self, items: Sequence[Mapping[str, Any]]) -> ColumnBatch:
        """The objects as rows."""
        return ColumnBatch([[item.get(name) for item in items] for name in self._types], len(items))


def check_width(columns: int) -> None:
    """Raises Permanent `too_large` above MAX_COLUMNS."""
    if columns > MAX_COLUMNS:
        raise Permanent("too_large", f"the table has more than {MAX_COLUMNS} columns")


def distinct(columns: list[str]) -> list[str]:
    """The column names. Raises Permanent `invalid_file` if two are the same."""
    seen: set[str] = set()
    for name in columns:
        if name in seen:
            raise Permanent("invalid_file", f"two columns are called {name[:100]!r}")
        seen.add(name)
    return columns


def types_of(values: Sequence[Any]) -> set[str]:
    """Arrow's names of the types of the values, without that of nulls."""
    kinds = set(map(type, values))
    types = {_TYPES[kind] for kind in kinds if kind in _TYPES}
    if int in kinds:
        integers = [value for value in values if type(value) is int]
        types |= {_type_of(min(integers)), _type_of(max(integers))}
    if msgspec.Raw in kinds:
        numbers = [value for value in values if type(value) is msgspec.Raw]
        types |= {"double"} if _are_shortest(numbers) else set(map(_type_of, numbers))
    rest = kinds - _TYPES.keys() - {int, msgspec.Raw, NoneType}
    return types | {_type_of(value) for value in values if type(value) in rest} if rest else types


def _type_of(value: object) -> str:
    """Arrow's name of the type. A "long" is not exact as a double, "mixed" becomes text."""
    match value:
        case int() if abs(value) <= _EXACT_DOUBLE:
            return "int64"
        case int() if -(1 << 63) <= value < 1 << 63:
            return "long"
        case msgspec.Raw() if _is_double(bytes(value)):
            return "double"
    return next((name for known, name in _TYPES.items() if isinstance(value, known)), "mixed")


def _are_shortest(numbers: Sequence[msgspec.Raw]) -> bool:
    """Whether all are written as the shortest texts of doubles: fast, and true of most columns."""
    text = msgspec.json.encode(numbers)
    try:
        return msgspec.json.encode(msgspec.json.decode(text)) == text
    except msgspec.DecodeError:  # beyond the largest double
        return False


def _is_double(number: bytes) -> bool:
    """Whether the shortest text of the nearest double is the same number."""
    if len(number) <= _MAX_EXACT_CHARS and not (b"e" in number or b"E" in number):
        return True
    try:
        return Decimal(repr(float(number))) == Decimal(number.decode())
    except InvalidOperation:  # an exponent beyond those of Decimal
        return False


def common_type(types: set[str]) -> str:
    """Arrow's name of a type that holds the values of all these types; often it is text."""
    if types and types <= {"int64", "long"}:
        return "int64"
    if len(types) == 1 and "mixed" not in types:
        return next(iter(types))
    return "double" if types == {"int64", "double"} else "string"
