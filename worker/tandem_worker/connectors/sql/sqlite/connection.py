"""SQLite for tasks: Tortoise's aiosqlite client with an authorizer for every statement.

The authorizer runs inside SQLite while it compiles a statement, so no spelling avoids it. It
forbids ATTACH, load_extension, all but harmless PRAGMAs, whatever would outlive the statement in
the session, and writes unless the connection's URL has `mode=rw`. Only a transaction, not a query,
can create, change and drop tables, indexes, views and triggers.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from typing import Any

import aiosqlite

from tandem_worker.connectors.sql.sqlite.client import GuardedClient
from tandem_worker.connectors.sql.sqlite.load import SqliteLoader, table_columns
from tandem_worker.connectors.sql.statements import rows
from tandem_worker.connectors.sql.statements.placeholders import Dialect, StatementParams, bind
from tandem_worker.connectors.sql.statements.rows import Column, Row
from tandem_worker.errors import Permanent, TaskError

MAX_CONNECTIONS = 8  # to one database; each is a thread
CLOSE_TIMEOUT_SECONDS = 5.0


class SqliteConnection:
    """One named database; opens up to MAX_CONNECTIONS connections when needed, and keeps them."""

    dialect: Dialect = "sqlite"

    def __init__(self, name: str, credentials: Mapping[str, Any], *, writable: bool) -> None:
        self.name = name
        self.writable = writable
        self._credentials = dict(credentials)
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._idle: list[GuardedClient] = []

    def config(self, expanded: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - PostgreSQL's needs it
        """Tortoise's configuration of the connection, for models."""
        # In this order: query_only forbids setting the journal mode.
        pragmas = {"journal_mode": "WAL", "query_only": "OFF" if self.writable else "ON"}
        return {"engine": "tandem_shared.sqlite", "credentials": {**self._credentials, **pragmas}}

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    @asynccontextmanager
    async def query(
        self,
        sql: str,
        params: StatementParams = None,
        *,
        timeout: float,  # noqa: ARG002 - the caller's own timeout ends the block, which interrupts the statement
    ) -> AsyncIterator["SqliteRows"]:
        """Run one statement and read its rows in chunks; an exception in the block interrupts it.

        With `mode=rw`, the end of the block commits and an exception rolls back. Raises TaskError,
        see connectors/sql/connections.py.
        """
        text, values = _bind(sql, params)
        async with self._session() as client:
            connection = client.open
            if self.writable:
                with client.task_errors():
                    await connection.execute("BEGIN")
            with client.guard():
                with client.task_errors():
                    cursor = await connection.execute(text, values)
                if cursor.description is None:
                    message = "the statement returns no rows: use sql.execute"
                    raise Permanent("sql_error", message)
                names = _names(cursor)
                rows.check_distinct(names)
                yield SqliteRows(client, cursor, names)
                with client.task_errors():
                    await cursor.close()
            if self.writable:
                with client.task_errors():
                    await connection.execute("COMMIT")

    @asynccontextmanager
    async def transaction(
        self,
        *,
        timeout: float,  # noqa: ARG002 - the caller's own timeout ends the block, which interrupts the statement
    ) -> AsyncIterator["SqliteTransaction"]:
        """Run statements; the end of the block applies all of them, an exception none.

        Raises TaskError, `read_only` without `mode=rw`.
        """
        if not self.writable:
            raise rows.read_only(self.name)
        async with self._session() as client:
            with client.task_errors():
                # IMMEDIATE: a transaction that has read cannot wait for another one's writes.
                await client.open.execute("BEGIN IMMEDIATE")
            yield SqliteTransaction(client)
            with client.task_errors():
                await client.open.execute("COMMIT")

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[GuardedClient]:
        async with self._slots:
            client = self._idle.pop() if self._idle else await self._open()
            try:
                yield client
            except BaseException:
                # Its thread may still be running the statement: do not reuse the connection.
                await asyncio.shield(_abandon(client))
                raise
            self._idle.append(client)

    async def _open(self) -> GuardedClient:
        client = GuardedClient(self.name, self._credentials, writable=self.writable)
        try:
            await client.create_connection(with_db=True)
        except sqlite3.Error as error:
            await client.close()
            message = f"the database of the connection {self.name!r} cannot be opened"
            raise TaskError("sql_connection", message, retryable=True) from error
        return client


class SqliteRows:
    """The rows of a running statement."""

    def __init__(self, client: GuardedClient, cursor: aiosqlite.Cursor, names: list[str]) -> None:
        self._client = client
        self._cursor = cursor
        self._names = names
        self._types = dict.fromkeys(names, "null")

    @property
    def columns(self) -> list[Column]:
        """A column's type is the storage class of its first value that is not NULL."""
        return [Column(name, type_) for name, type_ in self._types.items()]

    def __aiter__(self) -> AsyncIterator[list[Row]]:
        return rows.chunks(self._fetch)

    async def _fetch(self, size: int) -> list[Row]:
        with self._client.task_errors():
            fetched = await self._cursor.fetchmany(size)
        chunk: list[Row] = [dict(zip(self._names, row, strict=True)) for row in fetched]
        for name in [name for name, type_ in self._types.items() if type_ == "null"]:
            values = (row[name] for row in chunk if row[name] is not None)
            self._types[name] = next(map(_storage_class, values), "null")
        return chunk


class SqliteTransaction:
    """Statements between BEGIN and COMMIT."""

    def __init__(self, client: GuardedClient) -> None:
        self._client = client

    async def execute(self, sql: str, params: StatementParams = None) -> int:
        """Run one statement; returns how many rows it wrote or returned. Raises TaskError."""
        async with self._run(sql, params) as cursor:
            if cursor.description is None:
                return max(0, cursor.rowcount)
            count = 0
            while fetched := len(list(await cursor.fetchmany(rows.FIRST_CHUNK_ROWS))):
                count += fetched
            return count

    async def first(self, sql: str, params: Mapping[str, Any] | None = None) -> Row | None:
        """The first row of a query."""
        async with self._run(sql, params) as cursor:
            row = await cursor.fetchone()
            return None if row is None else dict(zip(_names(cursor), row, strict=True))

    async def columns(self, table: str) -> list[str]:
        """The names of the table's columns. Raises TaskError if the table is missing."""
        return list(await table_columns(self._client, table))

    async def loader(
        self,
        table: str,
        columns: Sequence[str],
        key: Sequence[str],
        *,
        json_is_text: bool,  # noqa: ARG002 - SQLite keeps JSON as text
    ) -> SqliteLoader:
        """A loader for these columns; with a `key`, its rows replace those with the same key.

        `json_is_text`: a string for a JSON column is JSON, and not a JSON string.
        """
        loader = SqliteLoader(self._client, table, columns, key)
        await loader.begin()
        return loader

    @asynccontextmanager
    async def _run(self, sql: str, params: StatementParams) -> AsyncIterator[aiosqlite.Cursor]:
        text, values = _bind(sql, params)
        client = self._client
        with client.task_errors(), client.guard(define=True):
            cursor = await client.open.execute(text, values)
            yield cursor
            await cursor.close()


async def _abandon(client: GuardedClient) -> None:
    """Close a connection whatever its thread is doing."""
    connection = client.open
    closing = asyncio.ensure_future(client.close())
    end = asyncio.get_running_loop().time() + CLOSE_TIMEOUT_SECONDS
    # Repeat: an interrupt has no effect before the thread has begun its statement.
    while not closing.done() and asyncio.get_running_loop().time() < end:
        with suppress(ValueError, sqlite3.ProgrammingError):  # it has closed meanwhile
            await connection.interrupt()
        await asyncio.wait({closing}, timeout=0.02)


def _names(cursor: aiosqlite.Cursor) -> list[str]:
    return [column[0] for column in cursor.description]


def _storage_class(value: Any) -> str:
    match value:
        case int():
            return "integer"
        case float():
            return "real"
        case str():
            return "text"
        case _:
            return "blob"


def _bind(sql: str, params: StatementParams) -> tuple[str, list[Any] | dict[str, Any]]:
    """The statement and its values, both as Python's sqlite3 takes them. Raises Permanent."""
    text, values = bind(sql, params, "sqlite")
    if any(isinstance(value, dict | list) for value in values):
        raise Permanent("sql_error", "SQLite params are numbers, text, booleans and null")
    # SQLite stores fractions as doubles: use the nearest one, as for a literal in SQL.
    bound = [float(value) if isinstance(value, Decimal) else value for value in values]
    if isinstance(params, Mapping):
        # Python 3.12.0 to 3.12.3 warn when the values of ?1, ?2, … are a list.
        return text, {str(number): value for number, value in enumerate(bound, 1)}
    return text, bound
