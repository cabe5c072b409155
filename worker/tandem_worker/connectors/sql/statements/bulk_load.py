"""What both databases share for loading rows into a table, batch by batch within a transaction.

A batch is written as a whole or not at all. If the database refuses its rows, RowsRefused is
raised; the caller then removes the row it names, or halves the batch to find it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tandem_worker.errors import Permanent

T = TypeVar("T")


class RowsRefused(Exception):
    """The database does not accept a batch, because of the row at this index if that is known."""

    def __init__(self, reason: str, row: int | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.row = row


def by_column(
    columns: Sequence[Sequence[Any]],
    types: Sequence[T],
    convert: Callable[[Sequence[Any], T], Sequence[Any]],
) -> list[Sequence[Any]]:
    """Each column converted by its type. Raises RowsRefused for the first row that any rejects."""
    made: list[Sequence[Any]] = []
    first: RowsRefused | None = None
    for values, type_ in zip(columns, types, strict=True):
        try:
            made.append(convert(values, type_))
        except RowsRefused as refused:
            if first is None or (refused.row or 0) < (first.row or 0):
                first = refused
    if first is not None:
        raise first
    return made


def each(values: Sequence[Any], convert: Callable[[Any], Any]) -> list[Any]:
    """The converted values. Raises RowsRefused for the first one that `convert` rejects."""
    made = []
    for number, value in enumerate(values):
        try:
            made.append(convert(value))
        except (ValueError, TypeError) as error:
            raise RowsRefused(str(error), number) from None
    return made


def quoted(name: str) -> str:
    """A table's or column's name, quoted for both databases; a dot separates schema and table."""
    return ".".join(map(_quote, name.split(".")))


def column_list(columns: Sequence[str]) -> str:
    return ", ".join(map(_quote, columns))


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def check_columns(table: str, known: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Raises Permanent `sql_error` for a column that the table does not have."""
    missing = next((name for name in columns if name not in known), None)
    if missing is not None or not columns:
        raise Permanent("sql_error", f"the table {table!r} has no column {missing!r}")


def no_table(table: str) -> Permanent:
    """The error for a table that does not exist."""
    return Permanent("sql_error", f"there is no table {table!r}")


def on_conflict(columns: Sequence[str], key: Sequence[str]) -> str:
    """The clause that makes an INSERT an upsert."""
    sets = ", ".join(
        f"{_quote(name)} = excluded.{_quote(name)}" for name in columns if name not in key
    )
    return f"ON CONFLICT ({column_list(key)}) DO {f'UPDATE SET {sets}' if sets else 'NOTHING'}"
