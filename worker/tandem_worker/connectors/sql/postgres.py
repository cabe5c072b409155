"""PostgreSQL for tasks: Tortoise's asyncpg client, and each statement in a transaction that it cannot leave.

The boundary of what a statement may do is the role in the connection's URL. On top of that, unless
the URL says `mode=rw`, every transaction is read-only, and the caller's text goes through the
extended protocol, which takes one statement: there is no second one to switch that off. A query
runs only statements that return rows, a transaction none that would end it.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg
from tortoise.backends.asyncpg.client import AsyncpgDBClient

from tandem_shared.postgres import asyncpg_options
from tandem_worker.connectors.sql import rows
from tandem_worker.connectors.sql.bulk_load import (
    POSTGRES_COLUMNS,
    Loader,
    PostgresLoader,
    check_columns,
    quoted,
)
from tandem_worker.connectors.sql.copy_out import Copied, copy_out
from tandem_worker.connectors.sql.pg_exchange import exchange_text
from tandem_worker.connectors.sql.pg_literals import Types, arguments, misfit
from tandem_worker.connectors.sql.placeholders import Dialect, bind, first_word
from tandem_worker.connectors.sql.rows import Column, Row
from tandem_worker.errors import TaskError

CONNECTIONS = 10  # to one database, unless the URL says maxsize
CONNECT = 10.0  # seconds
RELEASE = 5.0  # seconds for the end of a transaction and the reset of the session
LOCK = 30.0  # seconds that a statement waits for another's lock
# What pooling leaves behind of a session that could write: a role, temporary tables, the last value
# of a sequence.
_RESET = "RESET SESSION AUTHORIZATION; DISCARD TEMP; DISCARD SEQUENCES"
# They would end the transaction, and with it the promise that all is applied or nothing; COPY moves
# files.
_CONTROL = frozenset(
    {
        "abort",
        "begin",
        "commit",
        "copy",
        "end",
        "prepare",
        "release",
        "rollback",
        "savepoint",
        "start",
    }
)

Connection = Any  # asyncpg ships no types
Params = Sequence[Any] | Mapping[str, Any] | None


class PostgresConnection:
    """One named database. Connects when first used; `close` ends its pool."""

    dialect: Dialect = "postgresql"
    copies = True

    def __init__(self, name: str, credentials: Mapping[str, Any], *, writable: bool) -> None:
        self.name = name
        self.writable = writable
        self._options = asyncpg_options(credentials, maxsize=CONNECTIONS, timeout=CONNECT)
        # The types that each open connection exchanges as text.
        self._types: WeakKeyDictionary[Any, Types] = WeakKeyDictionary()
        self._client = AsyncpgDBClient(connection_name=name, init=self._prepare, **self._options)

    def config(self, expanded: Mapping[str, Any]) -> dict[str, Any]:
        """Tortoise's own form of the connection, for models."""
        credentials = dict(self._options)
        if not self.writable:
            credentials["server_settings"] = {"default_transaction_read_only": "on"}
        return {"engine": expanded["engine"], "credentials": credentials}

    async def close(self) -> None:
        await self._client.close()

    async def _prepare(self, connection: Connection) -> None:
        """Called with each new connection of the pool."""
        self._types[connection] = await exchange_text(connection)

    async def _statement(self, connection: Connection, text: str) -> tuple[Any, Types]:
        """The prepared statement, unnamed so that poolers between us and the server may reuse sessions.

        A type that was made after the connection opened is read first.
        """
        key = getattr(connection, "_con", connection)  # behind the pool's proxy
        for known in (False, True):
            statement = await connection.prepare(text, name="")
            types = self._types[key]
            used = [*statement.get_parameters(), *(one.type for one in statement.get_attributes())]
            if known or all(one.oid in types for one in used):
                break
            await self._prepare(key)
        return statement, types

    async def _bound(
        self, connection: Connection, sql: str, params: Params
    ) -> tuple[str, Any, list[Any]]:
        """The text with numbered placeholders, its prepared statement and the arguments."""
        text, values = bind(sql, params, "postgresql")
        with self._explained():
            statement, types = await self._statement(connection, text)
        return text, statement, arguments(values, statement.get_parameters(), types)

    @asynccontextmanager
    async def query(
        self, sql: str, params: Sequence[Any] | Mapping[str, Any] | None = None, *, timeout: float
    ) -> AsyncIterator["PostgresRows"]:
        """Run one statement and read its rows in portions; leaving the block early stops it on the server.

        `timeout` (seconds) is also the server's `statement_timeout`. With `mode=rw` the end of the
        block commits, an exception rolls back. Raises TaskError, see
        worker/tandem_worker/connectors/sql/connections.py.
        """
        async with self._begun(timeout, readonly=not self.writable) as connection:
            _, statement, values = await self._bound(connection, sql, params)
            _refuse_without_rows(statement)
            with self._explained():
                cursor = await statement.cursor(*values)
            columns = [Column(one.name, one.type.name) for one in statement.get_attributes()]
            yield PostgresRows(cursor, columns, self._explained)

    @asynccontextmanager
    async def csv(
        self, sql: str, params: Sequence[Any] | Mapping[str, Any] | None = None, *, timeout: float
    ) -> AsyncIterator[Copied]:
        """The same, as CSV of the server's making."""
        async with self._begun(timeout, readonly=not self.writable) as connection:
            with self._explained():
                await connection.execute("SET LOCAL standard_conforming_strings = on")
            text, statement, values = await self._bound(connection, sql, params)
            _refuse_without_rows(statement)
            async with copy_out(connection, text, values, statement, self._explained) as copied:
                yield copied

    @asynccontextmanager
    async def transaction(self, *, timeout: float) -> AsyncIterator["PostgresTransaction"]:
        """Run statements that are all applied at the end of the block, or not at all after an exception.

        `timeout` (seconds) is also the server's, of each statement. Raises TaskError, `read_only`
        without `mode=rw`.
        """
        if not self.writable:
            raise rows.read_only(self.name)
        async with self._begun(timeout, readonly=False) as connection:
            yield PostgresTransaction(connection, self._explained, self._bound, self._types)

    @asynccontextmanager
    async def _begun(self, timeout: float, *, readonly: bool) -> AsyncIterator[Connection]:
        """A connection in a transaction, which the end of the block commits if it may write."""
        async with self._session() as connection:
            transaction = connection.transaction(readonly=readonly)
            try:
                with self._explained():
                    # The server may have begun it although whoever asked has been cancelled.
                    await transaction.start()
                    await connection.execute(_limits(timeout))
                yield connection
            except BaseException:
                await _roll_back(transaction, connection)
                raise
            if readonly:
                # What a function did in spite of READ ONLY (large objects, say) goes with it.
                await _roll_back(transaction, connection)
            else:
                with self._explained():
                    await transaction.commit()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Around everything that speaks with the server: its errors as TaskErrors."""
        try:
            yield
        except (
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        ) as error:
            raise failure(error, self.name) from error
        except (OSError, EOFError) as error:
            raise _lost(self.name) from error

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Connection]:
        """A connection of the pool; on its way back the pool resets its session."""
        pooled = self._client.acquire_connection()
        try:
            connection: Connection = await pooled.__aenter__()
        except Exception as error:
            raise unreachable(error, self.name) from error
        try:
            yield connection
        finally:
            try:
                async with asyncio.timeout(RELEASE):
                    if self.writable and not connection.is_closed():
                        await connection.execute(_RESET)
                    await pooled.__aexit__(None, None, None)
            except (TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                # A server that does not even take its connection back; terminating frees its place
                # in the pool.
                _drop(connection)


class PostgresRows:
    """The rows of a running statement, through a cursor of the server."""

    def __init__(
        self,
        cursor: Any,
        columns: list[Column],
        explained: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.columns = columns
        self._cursor = cursor
        self._explained = explained

    async def __aiter__(self) -> AsyncIterator[list[Row]]:
        size = rows.FIRST_PORTION
        while True:
            with self._explained():
                portion = [dict(record) for record in await self._cursor.fetch(size)]
            if portion:
                yield portion
            if len(portion) < size:
                return
            size = rows.portion(size, portion)


class PostgresTransaction:
    """Statements between BEGIN and COMMIT."""

    def __init__(
        self,
        connection: Connection,
        explained: Callable[[], AbstractContextManager[None]],
        bound: Callable[[Connection, str, Params], Awaitable[tuple[str, Any, list[Any]]]],
        types: Mapping[Any, Types],
    ) -> None:
        self._connection = connection
        self._explained = explained
        self._bound = bound
        self._types = types

    async def execute(
        self, sql: str, params: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> int:
        """Run one statement; how many rows it wrote, or returned. Raises TaskError."""
        if (word := first_word(sql, "postgresql")) in _CONTROL:
            raise TaskError(
                "sql_error",
                f"{word.upper()} is not allowed in a transaction of tasks",
                retryable=False,
            )
        _, statement, values = await self._bound(self._connection, sql, params)
        with self._explained():
            if not statement.get_attributes():
                await statement.fetch(*values)
                return _affected(statement.get_statusmsg())
            cursor, count = await statement.cursor(*values), 0
            while portion := len(await cursor.fetch(rows.FIRST_PORTION)):
                count += portion
            return count

    async def first(self, sql: str, params: Mapping[str, Any] | None = None) -> Row | None:
        """The first row of a query."""
        _, statement, values = await self._bound(self._connection, sql, params)
        with self._explained():
            record = await statement.fetchrow(*values)
        return None if record is None else dict(record)

    async def loader(self, table: str, columns: Sequence[str], key: Sequence[str]) -> Loader:
        """Writes rows into these columns, in place of those that have the same `key`, if one is given."""
        with self._explained():
            found = await self._connection.fetch(POSTGRES_COLUMNS, quoted(table))
        oids = {record["name"]: record["oid"] for record in found}
        check_columns(table, oids, [*columns, *key])
        types = self._types[getattr(self._connection, "_con", self._connection)]
        made = PostgresLoader(
            self._connection,
            self._explained,
            table,
            columns=columns,
            oids=[oids[name] for name in columns],
            types=types,
            key=key,
        )
        await made.begin()
        return made


def _refuse_without_rows(statement: Any) -> None:
    """Raises TaskError for a statement that returns no rows, or two columns of one name."""
    attributes = statement.get_attributes()
    if not attributes:
        message = "this statement returns no rows; a query must: use sql.execute"
        raise TaskError("sql_error", message, retryable=False)
    rows.distinct([attribute.name for attribute in attributes])


def _affected(status: str) -> int:
    """The number at the end of `INSERT 0 5` or `UPDATE 5`; `CREATE TABLE` has none."""
    last = status.rpartition(" ")[2]
    return int(last) if last.isdecimal() else 0


def _limits(timeout: float) -> str:
    ms = max(1, min(int(timeout * 1000), 2**31 - 1))
    # The last one for a worker that vanished: nobody would end its transaction.
    return (
        f"SET LOCAL statement_timeout = {ms}; SET LOCAL lock_timeout = {min(ms, int(LOCK * 1000))};"
        f" SET LOCAL idle_in_transaction_session_timeout = {ms}; SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO, YMD'; SET LOCAL intervalstyle = iso_8601;"
        " SET LOCAL bytea_output = hex; SET LOCAL extra_float_digits = 1"
    )


def _drop(connection: Connection) -> None:
    with suppress(asyncpg.InterfaceError):  # the pool has already seen that it is gone
        connection.terminate()


async def _roll_back(transaction: Any, connection: Connection) -> None:
    """Undo the transaction, or end the connection if that takes too long or it has broken: the server then does."""
    try:
        async with asyncio.timeout(RELEASE):
            await transaction.rollback()
    except (
        TimeoutError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        OSError,
    ):
        _drop(connection)


# ----------------------------------------------------------------------------------------- failures


def unreachable(error: Exception, name: str) -> TaskError:
    """Why there is no connection, by the connection's name only: the driver's words may hold what the URL holds."""
    final = isinstance(
        error,
        asyncpg.InvalidAuthorizationSpecificationError
        | asyncpg.InvalidCatalogNameError
        | asyncpg.ClientConfigurationError
        | ssl.SSLCertVerificationError
        | TypeError,
    ) or isinstance(error.__cause__, asyncpg.InvalidCatalogNameError)
    what = "refuses its settings" if final else "does not answer"
    return TaskError(
        "sql_connection", f"the database of the connection {name!r} {what}", retryable=not final
    )


def _lost(name: str) -> TaskError:
    return TaskError("sql_connection", f"the connection {name!r} broke", retryable=True)


# How the server says which parameter it could not read; its message would quote the value.
_PARAMETER = re.compile(r"^(?:unnamed )?portal (?:.* )?parameter \$([0-9]+)", re.MULTILINE)
# By SQLSTATE class or code: connection, rollback (serialization, deadlock), resources, lock
# timeout, shutdown.
_PASSING = ("08", "40", "53", "55P03", "57P01", "57P02", "57P03")


def failure(error: Exception, name: str) -> TaskError:
    """The database's own short message, and whether the statement may succeed the next time."""
    if isinstance(error, asyncpg.QueryCanceledError):
        return TaskError(
            "timeout",
            "the database cancelled the statement: it took longer than it may",
            retryable=True,
        )
    if refused := re.match(r"invalid input for query argument \$([0-9]+)", str(error)):
        return misfit(int(refused[1]))  # asyncpg's own words would quote the value
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        bound = _PARAMETER.search(getattr(error, "context", None) or "")
        if bound and state.startswith("22"):
            return misfit(int(bound[1]))
        if state.startswith(("08", "57P")):
            return _lost(name)
        message = str(error.args[0]) if error.args else type(error).__name__
        return TaskError("sql_error", message, retryable=state.startswith(_PASSING))
    if isinstance(error, asyncpg.InterfaceError):
        closed = "closed" in str(error)
        return (
            _lost(name)
            if closed
            else TaskError("sql_error", str(error).partition("\n")[0], retryable=False)
        )
    return _lost(name)
