"""What readers and writers of tables share: formats, columns, batches of rows."""

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from tandem_worker.encoding import non_finite

TableFormat = Literal["csv", "ndjson", "json", "parquet"]


class ColumnBatch(NamedTuple):
    """Some rows, stored by column."""

    columns: list[list[Any]]
    rows: int


class TypeMismatch(Exception):
    """A Parquet column holds a value that is not of the column's type."""

    def __init__(self, name: str, type: str) -> None:
        super().__init__(name)
        self.name, self.type = name, type


class TableWriter(Protocol):
    """Writes one table to a sink."""

    def write(self, batch: ColumnBatch) -> None:
        """Append rows."""

    def end(self) -> None:
        """Finish the table; the sink stays open."""


def text(value: Any, hook: Callable[[Any], Any] | None = None) -> str:
    """The value as JSON without surrounding quotes; `hook` converts what JSON cannot represent."""
    if isinstance(value, float):
        return msgspec.json.encode(value).decode() if math.isfinite(value) else non_finite(value)
    if isinstance(value, Decimal):
        return f"{value:f}"  # never with an exponent
    made = plain(value) if isinstance(value, list | dict) else value
    body = msgspec.json.encode(made, enc_hook=hook).decode()
    return str(msgspec.json.decode(body)) if body.startswith('"') else body


def plain(value: Any) -> Any:
    """The value with decimals, at any depth, as text that has no exponent."""
    match value:
        case Decimal():
            return f"{value:f}"
        case list():
            return list(map(plain, value))
        case dict():
            return {name: plain(item) for name, item in value.items()}
    return value


class Columns(NamedTuple):
    """Column names, Arrow type names (for Parquet), and how a value becomes text."""

    names: Sequence[str]
    types: Sequence[str] = ()
    text: Callable[[Any], str] = text
