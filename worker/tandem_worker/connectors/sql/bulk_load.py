"""Rows into a table, batch by batch within a transaction: PostgreSQL by COPY FROM, SQLite by INSERT.

A batch is written as a whole or not at all. One whose rows the database refuses raises RowsRefused; the
caller then takes the row out that it names, or halves the batch to find it.
"""

import asyncio
import re
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import date, time
from functools import partial
from types import NoneType
from typing import Any, Protocol, TypeVar

import asyncpg
import msgspec

from tandem_worker.connectors.sql.pg_literals import Types, literal
from tandem_worker.connectors.sql.pg_types import unwrapped
from tandem_worker.errors import TaskError

T = TypeVar("T")

_STAGING = "pg_temp.tandem_staging"
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_ESCAPED = "\\\n\r\0"
_READ = frozenset({"bytea", "json", "jsonb"})  # types whose texts are not simply passed on
_LINE = re.compile(r"^COPY .*?, line ([0-9]+)", re.MULTILINE)
_ROWS_FAULT = ("22", "23")  # SQLSTATE classes: data exception, integrity constraint violation


class RowsRefused(Exception):
    """The database does not take a batch, because of the row of this index where that is known."""

    def __init__(self, reason: str, row: int | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.row = row


class Loader(Protocol):
    """Writes batches into some columns of one table."""

    async def load(self, columns: Sequence[Sequence[Any]]) -> None:
        """All rows of these columns or, with RowsRefused, none. Values are text, or Python's as JSON and Parquet have them.

        A batch takes a while to be written down: that is done in a thread.
        """


def by_column(
    columns: Sequence[Sequence[Any]],
    types: Sequence[T],
    convert: Callable[[Sequence[Any], T], Sequence[Any]],
) -> list[Sequence[Any]]:
    """Each column as `convert` makes it of its values and its type; of several that raise RowsRefused the first row's."""
    made: list[Sequence[Any]] = []
    worst: RowsRefused | None = None
    for values, type_ in zip(columns, types, strict=True):
        try:
            made.append(convert(values, type_))
        except RowsRefused as refused:
            if worst is None or (refused.row or 0) < (worst.row or 0):
                worst = refused
    if worst is not None:
        raise worst
    return made


def each(values: Sequence[Any], convert: Callable[[Any], Any]) -> list[Any]:
    """The values one by one; what `convert` cannot take is RowsRefused."""
    made = []
    for number, value in enumerate(values):
        try:
            made.append(convert(value))
        except (ValueError, TypeError) as error:
            raise RowsRefused(str(error), number) from None
    return made


def quoted(name: str) -> str:
    """A table's or column's name as both databases read it: exactly so; one dot stands between schema and table."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


def column_list(columns: Sequence[str]) -> str:
    return ", ".join('"' + name.replace('"', '""') + '"' for name in columns)


def check_columns(table: str, known: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Refuses a table that is none, and columns that it has not."""
    if not known:
        raise TaskError("sql_error", f"there is no table {table!r}", retryable=False)
    missing = next((name for name in columns if name not in known), None)
    if missing is not None or not columns:
        raise TaskError(
            "sql_error", f"the table {table!r} has no column {missing!r}", retryable=False
        )


def on_conflict(columns: Sequence[str], key: Sequence[str]) -> str:
    """What makes an INSERT an upsert."""
    sets = ", ".join(
        f"{column_list([name])} = excluded.{column_list([name])}"
        for name in columns
        if name not in key
    )
    return f"ON CONFLICT ({column_list(key)}) DO {f'UPDATE SET {sets}' if sets else 'NOTHING'}"


# --------------------------------------------------------------------------------------- PostgreSQL


class PostgresLoader:
    """COPY FROM, for an upsert into a temporary table first."""

    def __init__(
        self,
        connection: Any,
        explained: Callable[[], AbstractContextManager[None]],
        table: str,
        *,
        columns: Sequence[str],
        oids: Sequence[int],
        types: Types,
        key: Sequence[str],
    ) -> None:
        self._connection, self._explained = connection, explained
        self._schema, self._table = table.rpartition(".")[::2]
        self._columns, self._oids, self._types = list(columns), list(oids), types
        self._full = quoted(table)
        self._key = key

    async def begin(self) -> None:
        """Make what an upsert needs."""
        with self._explained():
            await self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            if self._key:
                columns = column_list(self._columns)
                await self._connection.execute(
                    f"CREATE TEMP TABLE tandem_staging ON COMMIT DROP AS"  # noqa: S608 - names are quoted
                    f' SELECT 0::bigint AS "tandem number", {columns} FROM {self._full} WITH NO DATA'
                )

    async def load(self, columns: Sequence[Sequence[Any]]) -> None:
        data = await asyncio.to_thread(self._data, columns)
        try:
            with self._explained():
                async with self._connection.transaction():
                    await self._copy(data)
        except TaskError as error:
            cause = error.__cause__
            if isinstance(cause, asyncpg.PostgresError) and (cause.sqlstate or "").startswith(
                _ROWS_FAULT
            ):
                line = _LINE.search(getattr(cause, "context", None) or "")
                raise RowsRefused(str(cause.args[0]), int(line[1]) - 1 if line else None) from None
            raise

    async def _copy(self, data: bytes) -> None:
        connection = self._connection
        if not self._key:
            await connection.copy_to_table(
                self._table,
                schema_name=self._schema or None,
                columns=self._columns,
                source=_once(data),
            )
            return
        columns, key = column_list(self._columns), column_list(self._key)
        await connection.copy_to_table(
            "tandem_staging",
            schema_name="pg_temp",
            columns=["tandem number", *self._columns],
            source=_once(data),
        )
        # Of the rows of one key the last counts: PostgreSQL does not update a row twice in one
        # statement.
        await connection.execute(
            f"INSERT INTO {self._full} ({columns}) SELECT {columns} FROM (SELECT DISTINCT ON ({key}) * FROM {_STAGING}"  # noqa: S608 - likewise
            f' ORDER BY {key}, "tandem number" DESC) AS rows ORDER BY "tandem number"'
            f" {on_conflict(self._columns, self._key)}"
        )
        await connection.execute(f"TRUNCATE {_STAGING}")

    def _data(self, columns: Sequence[Sequence[Any]]) -> bytes:
        cells = by_column(columns, self._oids, partial(_cells, types=self._types))
        if self._key:
            cells.insert(0, [str(number) for number in range(len(columns[0]))])
        return ("\n".join(map("\t".join, zip(*cells, strict=True))) + "\n").encode()


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _cells(values: Sequence[Any], oid: int, *, types: Types) -> list[str]:
    """A column in COPY's text format."""
    if unwrapped(types, oid).name in _READ or not set(map(type, values)) <= {str, NoneType}:
        values = each(
            values, lambda value: None if value is None else _postgres_text(value, oid, types)
        )
    # Most columns have nothing to escape: asked of all their texts at once, that takes no time.
    texts = [value for value in values if value is not None]
    joined = "\t".join(texts)
    if joined.count("\t") == len(texts) - 1 and not any(mark in joined for mark in _ESCAPED):
        return ["\\N" if value is None else value for value in values]
    return each(values, _escaped)


def _escaped(text: str | None) -> str:
    if text is None:
        return "\\N"
    if "\0" in text:
        raise ValueError("a text has a NUL character")
    return text.translate(_ESCAPES)


def _postgres_text(value: Any, oid: int, types: Types) -> str:
    """The value as the server reads it; a string for a JSON column may be JSON already."""
    if isinstance(value, str) and unwrapped(types, oid).name in ("json", "jsonb"):
        try:
            msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError):
            return msgspec.json.encode(value).decode()
        return value
    return literal(value, oid, types)


POSTGRES_COLUMNS = """SELECT attname AS name, atttypid AS oid FROM pg_attribute
    WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped"""


# ------------------------------------------------------------------------------------------- SQLite


_KEPT = {str, int, float, bool, bytes, NoneType}  # by SQLite as they are


def sqlite_values(values: Sequence[Any], type_: str) -> Sequence[Any]:
    """A column's values as SQLite keeps them where it is declared so. Raises RowsRefused."""
    kinds, blob = set(map(type, values)), "BLOB" in type_.upper()
    if kinds <= _KEPT and not (blob and str in kinds):
        return values
    return each(values, lambda value: _sqlite_value(value, blob=blob))


def _sqlite_value(value: Any, *, blob: bool) -> Any:
    match value:
        case str() if blob:
            return b64decode(value, validate=True)
        case str() | bool() | int() | float() | bytes() | None:
            return value
        case date() | time():
            return value.isoformat()
        case dict() | list():
            return msgspec.json.encode(value).decode()
        case _:
            return str(value)


def sqlite_insert(table: str, columns: Sequence[str], key: Sequence[str]) -> str:
    marks = ", ".join("?" * len(columns))
    upsert = on_conflict(columns, key) if key else ""
    return f"INSERT INTO {quoted(table)} ({column_list(columns)}) VALUES ({marks}) {upsert}"  # noqa: S608 - likewise
