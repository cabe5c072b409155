"""The columns that a table of objects has: all of their keys, each with a type that fits all of its values."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from tandem_worker.errors import Permanent
from tandem_worker.tables.table import Batch

COLUMNS = 10_000
_EXACT = 1 << 53  # up to here every integer is a number too


class Keys:
    """Told of every object, it knows the table's columns, in the order in which their names first came."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._seen: dict[str, set[str]] = {name: set() for name in names}

    def see(self, item: Mapping[str, Any]) -> None:
        """Raises Permanent `too_large` for more than COLUMNS."""
        seen = self._seen
        for name, value in item.items():
            if name not in seen:
                seen[name] = set()
            if value is not None:
                seen[name].add(_kind(value))
        few(len(seen))

    @property
    def names(self) -> list[str]:
        return list(self._seen)

    @property
    def types(self) -> list[str]:
        """In Arrow's words; what is mixed, or has parts of its own, is text."""
        return [_common(kinds) for kinds in self._seen.values()]

    def batch(self, items: list[Any]) -> Batch:
        """The objects as rows."""
        return Batch([[item.get(name) for item in items] for name in self._seen], len(items))


def few(columns: int) -> None:
    if columns > COLUMNS:
        raise Permanent("too_large", f"the table has more than {COLUMNS} columns")


def _kind(value: object) -> str:
    match value:
        case str():
            return "string"
        case bool():
            return "bool"
        case int():
            return (
                "int64"
                if abs(value) <= _EXACT
                else "long"
                if -(1 << 63) <= value < 1 << 63
                else "mixed"
            )
        case float():
            return "double"
        case bytes():
            return "binary"
        case datetime():
            return "timestamptz"
    return "mixed"


def _common(seen: set[str]) -> str:
    if len(seen) == 1 and "mixed" not in seen and "long" not in seen:
        return next(iter(seen))
    if seen and seen <= {"int64", "long"}:
        return "int64"
    return "double" if seen == {"int64", "double"} else "string"
