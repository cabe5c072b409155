"""PostgreSQL for tasks: Tortoise's asyncpg client; no statement can leave its transaction.

The role in the connection's URL limits what a statement may do. In addition, unless the URL has
`mode=rw`, every transaction is read-only, and the caller's text uses the extended protocol, which
accepts one statement: there cannot be a second one that switches this off. A query only runs
statements that return rows, a transaction none that would end it.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg
from tortoise.backends.asyncpg.client import AsyncpgDBClient

from tandem_shared.postgres import asyncpg_options
from tandem_worker.connectors.sql.postgres.copy_out import CopyStream, copy_out
from tandem_worker.connectors.sql.postgres.errors import unreachable
from tandem_worker.connectors.sql.postgres.exchange import Connection, exchange_text
from tandem_worker.connectors.sql.postgres.literals import Types
from tandem_worker.connectors.sql.postgres.load import PostgresLoader, table_columns
from tandem_worker.connectors.sql.postgres.session import PgSession
from tandem_worker.connectors.sql.statements import rows
from tandem_worker.connectors.sql.statements.placeholders import (
    Dialect,
    StatementParams,
    first_word,
)
from tandem_worker.connectors.sql.statements.rows import Column, Row
from tandem_worker.errors import Permanent

MAX_CONNECTIONS = 10  # to one database, unless the URL sets maxsize
CONNECT_TIMEOUT_SECONDS = 10.0
RELEASE_TIMEOUT_SECONDS = 5.0  # for ending a transaction and resetting the session
LOCK_TIMEOUT_SECONDS = 30.0  # for a lock that another transaction holds
# Pooling resets everything but this after a job that could write: the role, temporary tables, the
# last values of sequences.
_RESET = "RESET SESSION AUTHORIZATION; DISCARD TEMP; DISCARD SEQUENCES"
# Commands that would end the transaction, or, with COPY, read and write files.
_REFUSED_COMMANDS = frozenset(
    "abort begin commit copy end prepare release rollback savepoint start".split()
)


class PostgresConnection:
    """One named database. Connects when first used; `close` ends its pool."""

    dialect: Dialect = "postgresql"

    def __init__(self, name: str, credentials: Mapping[str, Any], *, writable: bool) -> None:
        self.name = name
        self.writable = writable
        self._options = asyncpg_options(
            credentials, maxsize=MAX_CONNECTIONS, timeout=CONNECT_TIMEOUT_SECONDS
        )
        # The database's types, as each open connection has read them.
        self._types: WeakKeyDictionary[Any, Types] = WeakKeyDictionary()
        # Statements without names: behind a pooler in transaction mode, the server's session may
        # know a name already, or belong to another client by now.
        unnamed = {**self._options, "statement_cache_size": 0}
        self._client = AsyncpgDBClient(connection_name=name, init=self._read_types, **unnamed)

    def config(self, expanded: Mapping[str, Any]) -> dict[str, Any]:
        """Tortoise's configuration of the connection, for models."""
        credentials = dict(self._options)
        if not self.writable:
            credentials["server_settings"] = {"default_transaction_read_only": "on"}
        return {"engine": expanded["engine"], "credentials": credentials}

    async def close(self) -> None:
        await self._client.close()

    async def _read_types(self, connection: Connection) -> None:
        """Called with each new connection of the pool."""
        self._types[connection] = await exchange_text(connection)

    @asynccontextmanager
    async def query(
        self, sql: str, params: StatementParams = None, *, timeout: float
    ) -> AsyncIterator["PostgresRows"]:
        """Run one statement and read its rows in chunks; leaving the block early stops it.

        `timeout` (seconds) is also the server's `statement_timeout`. With `mode=rw`, the end of the
        block commits and an exception rolls back. Raises TaskError, see
        connectors/sql/connections.py.
        """
        async with self._transaction(timeout, readonly=not self.writable) as session:
            _, statement, values = await session.bind(sql, params)
            _check_returns_rows(statement)
            with session.task_errors():
                cursor = await statement.cursor(*values)
            columns = [
                Column(column.name, column.type.name) for column in statement.get_attributes()
            ]
            yield PostgresRows(session, cursor, columns)

    @asynccontextmanager
    async def csv(
        self, sql: str, params: StatementParams = None, *, timeout: float
    ) -> AsyncIterator[CopyStream]:
        """Like `query`, as CSV that the server writes."""
        async with self._transaction(timeout, readonly=not self.writable) as session:
            text, statement, values = await session.bind(sql, params)
            _check_returns_rows(statement)
            async with copy_out(session, text, values, statement) as stream:
                yield stream

    @asynccontextmanager
    async def transaction(self, *, timeout: float) -> AsyncIterator["PostgresTransaction"]:
        """Run statements; the end of the block applies all of them, an exception none.

        `timeout` (seconds) is also the server's, for each statement. Raises TaskError, `read_only`
        without `mode=rw`.
        """
        if not self.writable:
            raise rows.read_only(self.name)
        async with self._transaction(timeout, readonly=False) as session:
            yield PostgresTransaction(session)

    @asynccontextmanager
    async def _transaction(self, timeout: float, *, readonly: bool) -> AsyncIterator[PgSession]:
        """A connection in a transaction; the end of the block commits it unless it is read-only."""
        async with self._acquire() as connection:
            session = PgSession(self.name, connection, self._types)
            transaction = connection.transaction(readonly=readonly)
            try:
                with session.task_errors():
                    # Inside the try: if this is cancelled, the server may have begun it already.
                    await transaction.start()
                    await connection.execute(_set_limits(timeout))
                yield session
            except BaseException:
                await _roll_back(transaction, connection)
                raise
            if readonly:
                # Undoes what a function did in spite of READ ONLY, such as large objects.
                await _roll_back(transaction, connection)
            else:
                with session.task_errors():
                    await transaction.commit()

    @asynccontextmanager
    async def _acquire(self) -> AsyncIterator[Connection]:
        """A connection of the pool, which resets its session when it is returned."""
        pooled = self._client.acquire_connection()
        try:
            connection: Connection = await pooled.__aenter__()
        except Exception as error:
            raise unreachable(error, self.name) from error
        try:
            yield connection
        finally:
            try:
                async with asyncio.timeout(RELEASE_TIMEOUT_SECONDS):
                    if self.writable and not connection.is_closed():
                        await connection.execute(_RESET)
                    await pooled.__aexit__(None, None, None)
            except (TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                # The server does not even take its connection back: free its place in the pool.
                _terminate(connection)


class PostgresRows:
    """The rows of a running statement, read through a cursor of the server."""

    def __init__(self, session: PgSession, cursor: Any, columns: list[Column]) -> None:
        self.columns = columns
        self._session = session
        self._cursor = cursor

    def __aiter__(self) -> AsyncIterator[list[Row]]:
        return rows.chunks(self._fetch)

    async def _fetch(self, size: int) -> list[Row]:
        with self._session.task_errors():
            return [dict(record) for record in await self._cursor.fetch(size)]


class PostgresTransaction:
    """Statements between BEGIN and COMMIT."""

    def __init__(self, session: PgSession) -> None:
        self._session = session

    async def execute(self, sql: str, params: StatementParams = None) -> int:
        """Run one statement; returns how many rows it wrote or returned. Raises TaskError."""
        word = first_word(sql, "postgresql")
        if word in _REFUSED_COMMANDS:
            raise Permanent("sql_error", f"{word.upper()} is not allowed in a task's transaction")
        _, statement, values = await self._session.bind(sql, params)
        with self._session.task_errors():
            if not statement.get_attributes():
                await statement.fetch(*values)
                return _row_count(statement.get_statusmsg())
            cursor, count = await statement.cursor(*values), 0
            while fetched := len(await cursor.fetch(rows.FIRST_CHUNK_ROWS)):
                count += fetched
            return count

    async def first(self, sql: str, params: Mapping[str, Any] | None = None) -> Row | None:
        """The first row of a query."""
        _, statement, values = await self._session.bind(sql, params)
        with self._session.task_errors():
            record = await statement.fetchrow(*values)
        return None if record is None else dict(record)

    async def columns(self, table: str) -> list[str]:
        """The names of the table's columns. Raises TaskError if the table is missing."""
        return list(await table_columns(self._session, table))

    async def loader(
        self, table: str, columns: Sequence[str], key: Sequence[str], *, json_is_text: bool
    ) -> PostgresLoader:
        """A loader for these columns; with a `key`, its rows replace those with the same key.

        `json_is_text`: a string for a JSON column is JSON, and not a JSON string.
        """
        loader = PostgresLoader(
            self._session, table, columns=columns, key=key, json_is_text=json_is_text
        )
        await loader.begin()
        return loader


def _check_returns_rows(statement: Any) -> None:
    """Raises Permanent for a statement without rows, or with two columns of the same name."""
    attributes = statement.get_attributes()
    if not attributes:
        raise Permanent("sql_error", "the statement returns no rows: use sql.execute")
    rows.check_distinct([attribute.name for attribute in attributes])


def _row_count(status: str) -> int:
    """The number at the end of `INSERT 0 5` or `UPDATE 5`; 0 for `CREATE TABLE`."""
    last = status.rpartition(" ")[2]
    return int(last) if last.isdecimal() else 0


def _set_limits(timeout: float) -> str:
    ms = max(1, min(int(timeout * 1000), 2**31 - 1))
    lock_ms = min(ms, int(LOCK_TIMEOUT_SECONDS * 1000))
    # idle_in_transaction_session_timeout ends the transaction of a worker that died in it. The
    # others fix how values and literals are written, whatever the role or database has set.
    settings = {
        "statement_timeout": ms,
        "lock_timeout": lock_ms,
        "idle_in_transaction_session_timeout": ms,
        "timezone": "'UTC'",
        "datestyle": "'ISO, YMD'",
        "intervalstyle": "iso_8601",
        "bytea_output": "hex",
        "extra_float_digits": 1,
        "array_nulls": "on",
        "xmloption": "content",
        "standard_conforming_strings": "on",
    }
    return "; ".join(f"SET LOCAL {name} = {value}" for name, value in settings.items())


def _terminate(connection: Connection) -> None:
    with suppress(asyncpg.InterfaceError):  # the pool may have noticed that it is closed
        connection.terminate()


async def _roll_back(transaction: Any, connection: Connection) -> None:
    """Roll back; if that fails or takes too long, terminate the connection, so the server does."""
    try:
        async with asyncio.timeout(RELEASE_TIMEOUT_SECONDS):
            await transaction.rollback()
    except (
        TimeoutError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        OSError,
    ):
        _terminate(connection)
