"""Rows into a SQLite table by INSERT."""

import asyncio
import math
import sqlite3
from base64 import b64decode
from collections.abc import Sequence
from datetime import date, time
from types import NoneType
from typing import Any

import msgspec

from tandem_worker.connectors.sql.sqlite.client import GuardedClient
from tandem_worker.connectors.sql.statements.bulk_load import (
    RowsRefused,
    by_column,
    check_columns,
    column_list,
    each,
    no_table,
    on_conflict,
    quoted,
)
from tandem_worker.encoding import with_floats

_NATIVE = {str, int, float, bool, bytes, NoneType}  # types that SQLite stores as they are
_TEXT_TYPES = ("CHAR", "CLOB", "TEXT")  # SQLite's rule for the affinity of a declared type
_INFINITE = {"Infinity": math.inf, "-Infinity": -math.inf}  # as exports write them


async def table_columns(client: GuardedClient, table: str) -> dict[str, str]:
    """The table's columns and their declared types. Raises TaskError if the table is missing."""
    schema, dot, name = table.rpartition(".")
    prefix = quoted(schema) + dot if dot else ""
    with client.task_errors():
        found = await client.open.execute_fetchall(f"PRAGMA {prefix}table_xinfo({quoted(name)})")
    if not found:
        raise no_table(table)
    return {str(row[1]): str(row[2]) for row in found}


class SqliteLoader:
    """INSERT of many rows."""

    def __init__(
        self, client: GuardedClient, table: str, columns: Sequence[str], key: Sequence[str]
    ) -> None:
        self._client, self._table, self._columns, self._key = client, table, columns, key
        marks = ", ".join("?" * len(columns))
        self._insert = (
            f"INSERT INTO {quoted(table)} ({column_list(columns)}) VALUES ({marks})"  # noqa: S608 - names are quoted
            f" {on_conflict(columns, key) if key else ''}"
        )
        self._types: list[str] = []

    async def begin(self) -> None:
        """Check table and columns. Raises TaskError."""
        types = await table_columns(self._client, self._table)
        check_columns(self._table, types, [*self._columns, *self._key])
        self._types = [types[name] for name in self._columns]

    async def load(self, columns: Sequence[Sequence[Any]]) -> None:
        rows = await asyncio.to_thread(self._encode, columns)
        client, connection = self._client, self._client.open
        with client.task_errors():
            await connection.execute("SAVEPOINT batch")
            try:
                with client.guard():
                    await connection.executemany(self._insert, rows)
            except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError) as error:
                await connection.execute("ROLLBACK TO batch")
                raise RowsRefused(str(error), None) from None
            await connection.execute("RELEASE batch")

    def _encode(self, columns: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
        return list(zip(*by_column(columns, self._types, _values), strict=True))


def _values(values: Sequence[Any], type_: str) -> Sequence[Any]:
    """A column's values as SQLite stores them under this declared type. Raises RowsRefused."""
    kinds, declared = set(map(type, values)), type_.upper()
    blob = "BLOB" in declared
    if msgspec.Raw in kinds:
        values = with_floats(values)
        kinds = set(map(type, values))
    if not kinds <= _NATIVE or (blob and str in kinds):
        values = each(values, lambda value: _value(value, blob=blob))
    numeric = declared and not blob and not any(word in declared for word in _TEXT_TYPES)
    if numeric and str in kinds and not _INFINITE.keys().isdisjoint(values):
        return [_INFINITE.get(value, value) for value in values]
    return values


def _value(value: Any, *, blob: bool) -> Any:
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
