"""Rows into a PostgreSQL table by COPY FROM."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import date, datetime, time
from decimal import Decimal, InvalidOperation
from functools import partial
from types import NoneType
from typing import Any

import asyncpg
import msgspec

from tandem_worker.connectors.sql.postgres.literals import (
    Types,
    is_structured,
    literal,
    plain_digits,
)
from tandem_worker.connectors.sql.postgres.session import PgSession
from tandem_worker.connectors.sql.postgres.types import JSON, unwrapped
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
from tandem_worker.encoding import decode_exactly
from tandem_worker.errors import TaskError

_STAGING = "pg_temp.tandem_staging"
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_ESCAPED = "\\\n\r\0"
_NUMBERS = frozenset({msgspec.Raw, int})  # JSON and PostgreSQL write them alike
_PARSED = frozenset({"bytea", "json", "jsonb"})  # types whose texts are not passed on unchanged
# Kinds of which a whole column becomes text as `literal` would write each value.
_PLAIN: dict[type, Callable[[Any], str]] = {
    bool: lambda value: "true" if value else "false",
    Decimal: plain_digits,
    **{kind: kind.isoformat for kind in (date, datetime, time)},
}
_LINE = re.compile(r"^COPY .*?, line ([0-9]+)", re.MULTILINE)
_ROW_ERRORS = ("22", "23")  # SQLSTATE classes: data exception, integrity constraint violation
_COLUMNS = """SELECT attname AS name, atttypid AS oid FROM pg_attribute
    WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped"""


async def table_columns(session: PgSession, table: str) -> dict[str, int]:
    """The table's columns and their types' OIDs. Raises TaskError if the table is missing."""
    with session.task_errors():
        found = await session.connection.fetch(_COLUMNS, quoted(table))
    if not found:
        raise no_table(table)
    return {record["name"]: record["oid"] for record in found}


class PostgresLoader:
    """COPY FROM; for an upsert, into a temporary table first."""

    def __init__(
        self,
        session: PgSession,
        table: str,
        *,
        columns: Sequence[str],
        key: Sequence[str],
        json_is_text: bool,
    ) -> None:
        self._session = session
        self._table = table
        self._quoted_table = quoted(table)
        self._columns, self._key = list(columns), list(key)
        self._cells = partial(_cells, types=session.types, json_is_text=json_is_text)
        self._oids: list[int] = []

    async def begin(self) -> None:
        """Check table and columns, and create what an upsert needs. Raises TaskError."""
        oids = await table_columns(self._session, self._table)
        check_columns(self._table, oids, [*self._columns, *self._key])
        self._oids = [oids[name] for name in self._columns]
        connection = self._session.connection
        with self._session.task_errors():
            await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            if self._key:
                await connection.execute(f"DROP TABLE IF EXISTS {_STAGING}")
                await connection.execute(
                    f"CREATE TEMP TABLE tandem_staging ON COMMIT DROP AS"  # noqa: S608 - names are quoted
                    f' SELECT 0::bigint AS "tandem number", {column_list(self._columns)}'
                    f" FROM {self._quoted_table} WITH NO DATA"
                )

    async def load(self, columns: Sequence[Sequence[Any]]) -> None:
        data = await asyncio.to_thread(self._encode, columns)
        try:
            with self._session.task_errors():
                async with self._session.connection.transaction():
                    await self._copy(data)
        except TaskError as error:
            cause = error.__cause__
            if not isinstance(cause, asyncpg.PostgresError):
                raise
            if not (cause.sqlstate or "").startswith(_ROW_ERRORS):
                raise
            line = _LINE.search(getattr(cause, "context", None) or "")
            raise RowsRefused(str(cause.args[0]), int(line[1]) - 1 if line else None) from None

    async def _copy(self, data: bytes) -> None:
        connection = self._session.connection
        if not self._key:
            schema, _, table = self._table.rpartition(".")
            await connection.copy_to_table(
                table,
                schema_name=schema or None,
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
        # PostgreSQL does not update a row twice in one statement: keep each key's last row.
        await connection.execute(
            f"INSERT INTO {self._quoted_table} ({columns}) SELECT {columns}"  # noqa: S608 - names are quoted
            f" FROM (SELECT DISTINCT ON ({key}) * FROM {_STAGING}"
            f' ORDER BY {key}, "tandem number" DESC) AS rows ORDER BY "tandem number"'
            f" {on_conflict(self._columns, self._key)}"
        )
        await connection.execute(f"TRUNCATE {_STAGING}")

    def _encode(self, columns: Sequence[Sequence[Any]]) -> bytes:
        cells = by_column(columns, self._oids, self._cells)
        if self._key:
            cells.insert(0, [str(number) for number in range(len(columns[0]))])
        return ("\n".join(map("\t".join, zip(*cells, strict=True))) + "\n").encode()


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _cells(values: Sequence[Any], oid: int, *, types: Types, json_is_text: bool) -> list[str]:
    """A column in COPY's text format."""
    one = unwrapped(types, oid)
    parsed = one.builtin in _PARSED or is_structured(one)
    kinds = set(map(type, values)) - {NoneType}
    if not parsed and kinds <= _NUMBERS:
        numbers = msgspec.json.encode(values).decode()
        if "e" not in numbers and "E" not in numbers:
            return numbers[1:-1].replace("null", "\\N").split(",")
    plain = _PLAIN.get(next(iter(kinds))) if len(kinds) == 1 and not parsed else None
    if plain is not None:
        values = [None if value is None else plain(value) for value in values]
    elif parsed or not kinds <= {str}:
        values = each(
            values,
            lambda value: (
                None if value is None else _text(value, oid, types, json_is_text=json_is_text)
            ),
        )
    # Most columns have nothing to escape; testing all of their texts at once is fast.
    texts = [value for value in values if value is not None]
    joined = "\t".join(texts)
    if joined.count("\t") == len(texts) - 1 and not any(mark in joined for mark in _ESCAPED):
        return ["\\N" if value is None else value for value in values]
    return each(values, _escaped)


def _escaped(text: str | None) -> str:
    if text is None:
        return "\\N"
    if "\0" in text:
        raise ValueError("the text has a NUL character")
    return text.translate(_ESCAPES)


def _text(value: Any, oid: int, types: Types, *, json_is_text: bool) -> str:
    """The value as the server reads it."""
    is_json = unwrapped(types, oid).builtin in JSON
    if is_json and isinstance(value, str) and not json_is_text:
        return msgspec.json.encode(value).decode()
    if type(value) in (msgspec.Raw, list, dict) and not json_is_text:
        try:
            value = decode_exactly(msgspec.json.encode(value))
        except InvalidOperation:
            raise ValueError("the exponent of the number is out of range") from None
    return literal(value, oid, types)
