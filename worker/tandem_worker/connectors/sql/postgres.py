"""PostgreSQL for tasks: Tortoise's asyncpg client, and each statement in a transaction that it cannot leave.

The boundary of what a statement may do is the role in the connection's URL. On top of that, unless
the URL says `mode=rw`, every transaction is read-only, and the caller's text goes through the
extended protocol, which takes one statement: there is no second one to switch that off. A query
runs only statements that return rows, a transaction none that would end it.
"""

import asyncio
import re
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from datetime import date, datetime, time
from functools import partial
from typing import Any

import asyncpg
import msgspec
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


class PostgresConnection:
    """One named database. Connects when first used; `close` ends its pool."""

    dialect: Dialect = "postgresql"
    copies = True

    def __init__(self, name: str, credentials: Mapping[str, Any], *, writable: bool) -> None:
        self.name = name
        self.writable = writable
        self._options = asyncpg_options(credentials, maxsize=CONNECTIONS, timeout=CONNECT)
        self._client = AsyncpgDBClient(connection_name=name, init=_prepare, **self._options)

    def config(self, expanded: Mapping[str, Any]) -> dict[str, Any]:
        """Tortoise's own form of the connection, for models."""
        credentials = dict(self._options)
        if not self.writable:
            credentials["server_settings"] = {"default_transaction_read_only": "on"}
        return {"engine": expanded["engine"], "credentials": credentials}

    async def close(self) -> None:
        await self._client.close()

    @asynccontextmanager
    async def query(
        self, sql: str, params: Sequence[Any] | Mapping[str, Any] | None = None, *, timeout: float
    ) -> AsyncIterator["PostgresRows"]:
        """Run one statement and read its rows in portions; leaving the block early stops it on the server.

        `timeout` (seconds) is also the server's `statement_timeout`. With `mode=rw` the end of the
        block commits, an exception rolls back. Raises TaskError, see
        worker/tandem_worker/connectors/sql/connections.py.
        """
        text, values = bind(sql, params, "postgresql")
        async with self._begun(timeout, readonly=not self.writable) as connection:
            with self._explained():
                statement, arguments = await _asked(connection, text, values)
                cursor = await statement.cursor(*arguments)
            columns = [Column(one.name, one.type.name) for one in statement.get_attributes()]
            yield PostgresRows(cursor, columns, self._explained)

    @asynccontextmanager
    async def csv(
        self, sql: str, params: Sequence[Any] | Mapping[str, Any] | None = None, *, timeout: float
    ) -> AsyncIterator[Copied]:
        """The same, as CSV of the server's making."""
        text, values = bind(sql, params, "postgresql")
        async with self._begun(timeout, readonly=not self.writable) as connection:
            with self._explained():
                await connection.execute("SET LOCAL standard_conforming_strings = on")
                statement, arguments = await _asked(connection, text, values)
            async with copy_out(connection, text, arguments, statement, self._explained) as copied:
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
            yield PostgresTransaction(connection, self._explained)

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
        self, connection: Connection, explained: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._connection = connection
        self._explained = explained
        self._prepared: tuple[str, Any] = ("", None)

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
        statement, arguments = await self._bound(sql, params)
        with self._explained():
            if not statement.get_attributes():
                await statement.fetch(*arguments)
                return _affected(statement.get_statusmsg())
            cursor, count = await statement.cursor(*arguments), 0
            while portion := len(await cursor.fetch(rows.FIRST_PORTION)):
                count += portion
            return count

    async def first(self, sql: str, params: Mapping[str, Any] | None = None) -> Row | None:
        """The first row of a query."""
        statement, arguments = await self._bound(sql, params)
        with self._explained():
            record = await statement.fetchrow(*arguments)
        return None if record is None else dict(record)

    async def loader(self, table: str, columns: Sequence[str], key: Sequence[str]) -> Loader:
        """Writes rows into these columns, in place of those that have the same `key`, if one is given."""
        with self._explained():
            found = await self._connection.fetch(POSTGRES_COLUMNS, quoted(table))
        types = {record["name"]: record["type"] for record in found}
        check_columns(table, types, [*columns, *key])
        made = PostgresLoader(
            self._connection,
            self._explained,
            table,
            columns=columns,
            types=[types[name] for name in columns],
            key=key,
        )
        await made.begin()
        return made

    async def _bound(
        self, sql: str, params: Sequence[Any] | Mapping[str, Any] | None
    ) -> tuple[Any, list[Any]]:
        text, values = bind(sql, params, "postgresql")
        if self._prepared[0] != text:
            with self._explained():
                self._prepared = (text, await self._connection.prepare(text))
        statement = self._prepared[1]
        return statement, _arguments(values, statement.get_parameters())


async def _asked(connection: Connection, text: str, values: Sequence[Any]) -> tuple[Any, list[Any]]:
    """A prepared statement that returns rows, and its arguments."""
    statement = await connection.prepare(text)
    arguments = _arguments(values, statement.get_parameters())
    attributes = statement.get_attributes()
    if not attributes:
        raise TaskError(
            "sql_error", "this statement returns no rows, a query does", retryable=False
        )
    rows.distinct([attribute.name for attribute in attributes])
    return statement, arguments


def _affected(status: str) -> int:
    """The number at the end of `INSERT 0 5` or `UPDATE 5`; `CREATE TABLE` has none."""
    last = status.rpartition(" ")[2]
    return int(last) if last.isdecimal() else 0


async def _prepare(connection: Connection) -> None:
    """What asyncpg's own types would lose: months in intervals; and JSON as values instead of text."""
    await connection.set_type_codec(
        "interval", schema="pg_catalog", encoder=str, decoder=str, format="text"
    )
    for name in ("json", "jsonb"):
        await connection.set_type_codec(
            name, schema="pg_catalog", encoder=_json, decoder=msgspec.json.decode, format="text"
        )


def _json(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _limits(timeout: float) -> str:
    ms = max(1, min(int(timeout * 1000), 2**31 - 1))
    # The last one for a worker that vanished: nobody would end its transaction.
    return (
        f"SET LOCAL statement_timeout = {ms}; SET LOCAL lock_timeout = {min(ms, int(LOCK * 1000))};"
        f" SET LOCAL idle_in_transaction_session_timeout = {ms}; SET LOCAL intervalstyle = iso_8601"
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


# ------------------------------------------------------------------------------------ values for it


def _arguments(values: Sequence[Any], types: Sequence[asyncpg.Type]) -> list[Any]:
    """JSON values as asyncpg wants them for the types that the server expects."""
    if len(values) != len(types):
        raise TaskError(
            "sql_error",
            f"the statement has {len(types)} placeholders, params {len(values)}",
            retryable=False,
        )
    arguments = []
    for number, (value, type_) in enumerate(zip(values, types, strict=True), 1):
        try:
            arguments.append(_argument(value, type_.name))
        except (ValueError, TypeError):
            message = f"the value of ${number} is no {type_.name}"
            raise TaskError("sql_error", message, retryable=False) from None
    return arguments


def _argument(value: Any, type_: str) -> Any:
    if type_.endswith("[]") and isinstance(value, list):
        return [_argument(one, type_[:-2]) for one in value]
    parse = _PARSED.get(type_) if isinstance(value, str) else None
    return value if parse is None else parse(value)


_PARSED: dict[str, Callable[[str], Any]] = {
    "timestamp": datetime.fromisoformat,
    "timestamptz": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timetz": time.fromisoformat,
    "bytea": partial(b64decode, validate=True),
}


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
    if misfit := re.match(r"invalid input for query argument (\$[0-9]+)", str(error)):
        # asyncpg's own words, which quote the value.
        return TaskError(
            "sql_error", f"the value of {misfit[1]} does not fit its type", retryable=False
        )
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
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
