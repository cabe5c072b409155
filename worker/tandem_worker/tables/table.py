"""What readers and writers of tables share: formats, columns, batches of rows."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

Format = Literal["csv", "ndjson", "json", "parquet"]


GROUP_ROWS, GROUP_BYTES = 1 << 17, 8 << 20  # of a Parquet row group, which is in memory as a whole


class Batch(NamedTuple):
    """Some rows, by column."""

    columns: list[list[Any]]
    rows: int


class Misfit(Exception):
    """A column of Parquet has a value that is not of its type."""

    def __init__(self, name: str, type: str) -> None:
        super().__init__(name)
        self.name, self.type = name, type


class Output(Protocol):
    """What a table is written to."""

    def write(self, batch: Batch) -> None:
        """Add rows."""

    def end(self) -> None:
        """The table is whole; the sink is not closed."""


def text(value: Any, hook: Callable[[Any], Any] | None = None) -> str:
    """A value as text: as JSON has it, without the quotes around it; `hook` knows what JSON has not."""
    if isinstance(value, float):
        if math.isfinite(value):
            return msgspec.json.encode(value, enc_hook=hook).decode()
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    body = msgspec.json.encode(value, enc_hook=hook).decode()
    return str(msgspec.json.decode(body)) if body.startswith('"') else body


class Columns(NamedTuple):
    """A table's columns: their names, for Parquet their types in Arrow's words, and what makes text of a value."""

    names: Sequence[str]
    types: Sequence[str] = ()
    text: Callable[[Any], str] = text
