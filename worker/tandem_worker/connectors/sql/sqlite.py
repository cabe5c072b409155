"""SQLite for tasks: Tortoise's aiosqlite client, opened read-only, with an authorizer before every statement.

The authorizer is asked by SQLite itself while it compiles a statement, so no spelling gets around
it: no ATTACH, no load_extension, no PRAGMA but harmless questions, nothing that outlives the
statement in the session; and no writes unless the connection's URL says `mode=rw`. Tables, indexes,
views and triggers are made, changed and dropped only by a transaction, not by a query.
"""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import aiosqlite

from tandem_shared.sqlite import BUSY_TIMEOUT_SECONDS, SQLiteClient
from tandem_worker.connectors.sql import rows
from tandem_worker.connectors.sql.bulk_load import (
    Loader,
    RowsRefused,
    by_column,
    check_columns,
    quoted,
    sqlite_insert,
    sqlite_values,
)
from tandem_worker.connectors.sql.placeholders import Dialect, bind
from tandem_worker.connectors.sql.rows import Column, Row
from tandem_worker.errors import TaskError

CONNECTIONS = 8  # to one database; each is a thread
CLOSE = 5.0  # seconds
LONGEST_VALUE = 64 << 20  # bytes: `zeroblob(1e9)` would otherwise take that much memory

_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
_WRITES = {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE}
_DEFINES = {
    getattr(sqlite3, f"SQLITE_{verb}_{what}")
    for verb in ("CREATE", "DROP")
    for what in ("TABLE", "INDEX", "VIEW", "TRIGGER")
} | {sqlite3.SQLITE_ALTER_TABLE, sqlite3.SQLITE_REINDEX}
_ASKING = {
    "table_info",
    "table_xinfo",
    "table_list",
    "index_list",
    "index_info",
    "index_xinfo",
    "foreign_key_list",
}
_ASKING_BARE = {
    "data_version",
    "user_version",
    "schema_version",
    "application_id",
    "encoding",
    "page_count",
    "page_size",
}
# SQLite declares a virtual table (json_each, fts5) by what looks like an update of its schema,
# which it lets nobody really make; an rtree prepares the writes of its own tables when it is read.
# Where the file is read-only they fail.
_INNER = re.compile(r"sqlite_(temp_)?(master|schema)|.*_(node|rowid|parent)")
_ACTIONS = {
    getattr(sqlite3, name): name.removeprefix("SQLITE_").replace("_", " ")
    for name in dir(sqlite3)
    if name.startswith(("SQLITE_CREATE", "SQLITE_DROP", "SQLITE_ALTER"))
} | {
    sqlite3.SQLITE_INSERT: "INSERT",
    sqlite3.SQLITE_UPDATE: "UPDATE",
    sqlite3.SQLITE_DELETE: "DELETE",
    sqlite3.SQLITE_ATTACH: "ATTACH",
    sqlite3.SQLITE_DETACH: "DETACH",
    sqlite3.SQLITE_PRAGMA: "PRAGMA",
    sqlite3.SQLITE_TRANSACTION: "a transaction of its own",
    sqlite3.SQLITE_SAVEPOINT: "a savepoint",
    sqlite3.SQLITE_REINDEX: "REINDEX",
    sqlite3.SQLITE_ANALYZE: "ANALYZE",
    sqlite3.SQLITE_FUNCTION: "this function",
}


class _Guarded(SQLiteClient):
    """Tortoise's client with the file opened as the connection's mode says, and the authorizer set."""

    fetch_rows = rows.FIRST_PORTION

    def __init__(self, name: str, credentials: Mapping[str, Any], *, writable: bool) -> None:
        super().__init__(connection_name=name, **credentials)
        self._writable = writable
        self.guarding = False
        self.defining = False  # a statement may change the schema
        self.denied = ""
        if not writable:
            # Of a database that it may not write, a connection cannot choose how it is written.
            self.pragmas = {
                name: value
                for name, value in self.pragmas.items()
                if not name.startswith("journal_")
            }

    def connect(self) -> sqlite3.Connection:
        mode = "rwc" if self._writable else "ro"
        connection = sqlite3.connect(
            f"file://{quote(str(Path(self.filename).absolute()))}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT_SECONDS,
            isolation_level=None,
            # A cached statement is not shown to the authorizer again.
            cached_statements=0,
        )
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE)
        connection.set_authorizer(self._authorize)
        return self.set_pragmas(connection)

    @property
    def open(self) -> aiosqlite.Connection:
        """The connection, once there is one."""
        if self._connection is None:
            raise RuntimeError("not connected")
        return self._connection

    def _authorize(
        self, action: int, first: str | None, second: str | None, _database: Any, _trigger: Any
    ) -> int:
        """Called by SQLite in the connection's thread."""
        if not self.guarding or action in _READS:
            return sqlite3.SQLITE_OK
        if action in _WRITES and (self._writable or _INNER.fullmatch(first or "")):
            return sqlite3.SQLITE_OK
        if action in _DEFINES and self.defining:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and second != "load_extension":
            return sqlite3.SQLITE_OK
        asked = (first or "").lower()
        if action == sqlite3.SQLITE_PRAGMA and (
            asked in _ASKING or (asked in _ASKING_BARE and second is None)
        ):
            return sqlite3.SQLITE_OK
        self.denied = _ACTIONS.get(action, "this")
        return sqlite3.SQLITE_DENY


class SqliteConnection:
    """One named database; connections to it are opened as they are needed, up to CONNECTIONS, and kept."""

    dialect: Dialect = "sqlite"
    copies = False

    def __init__(self, name: str, credentials: Mapping[str, Any], *, writable: bool) -> None:
        self.name = name
        self.writable = writable
        self._credentials = dict(credentials)
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._idle: list[_Guarded] = []

    def config(self, expanded: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - PostgreSQL's needs it
        """Tortoise's own form of the connection, for models."""
        # In this order: how the file is written can be chosen only before.
        pragmas = {"journal_mode": "WAL", "query_only": "OFF" if self.writable else "ON"}
        return {"engine": "tandem_shared.sqlite", "credentials": {**self._credentials, **pragmas}}

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    @asynccontextmanager
    async def query(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        timeout: float,  # noqa: ARG002 - the caller's own timeout ends the block, which interrupts the statement
    ) -> AsyncIterator["SqliteRows"]:
        """Run one statement and read its rows in portions; leaving the block by an exception interrupts it.

        With `mode=rw` the end of the block commits, an exception rolls back. Raises TaskError, see
        worker/tandem_worker/connectors/sql/connections.py.
        """
        text, values = bind(sql, params, "sqlite")
        async with self._session() as client:
            connection = client.open
            with _explained(client):
                if self.writable:
                    await connection.execute("BEGIN")
                client.guarding, client.denied = True, ""
                cursor = await connection.execute(text, [_value(value) for value in values])
                if cursor.description is None:
                    raise TaskError(
                        "sql_error", "this statement returns no rows, a query does", retryable=False
                    )
                names = [description[0] for description in cursor.description]
                rows.distinct(names)
            yield SqliteRows(client, cursor, names)
            with _explained(client):
                await cursor.close()
                client.guarding = False
                if self.writable:
                    await connection.execute("COMMIT")

    def csv(
        self,
        sql: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        timeout: float,
    ) -> NoReturn:
        """SQLite writes no CSV itself."""
        raise NotImplementedError

    @asynccontextmanager
    async def transaction(
        self,
        *,
        timeout: float,  # noqa: ARG002 - likewise
    ) -> AsyncIterator["SqliteTransaction"]:
        """Run statements that are all applied at the end of the block, or not at all after an exception.

        Raises TaskError, `read_only` without `mode=rw`.
        """
        if not self.writable:
            raise rows.read_only(self.name)
        async with self._session() as client:
            with _explained(client):
                # At once, since a transaction that has read cannot wait for another's writes.
                await client.open.execute("BEGIN IMMEDIATE")
            yield SqliteTransaction(client)
            with _explained(client):
                await client.open.execute("COMMIT")

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[_Guarded]:
        async with self._free:
            client = self._idle.pop() if self._idle else await self._open()
            try:
                yield client
            except BaseException:
                # What it was doing is of no use any more, and may still be going on in its thread.
                await asyncio.shield(_abandon(client))
                raise
            self._idle.append(client)

    async def _open(self) -> _Guarded:
        client = _Guarded(self.name, self._credentials, writable=self.writable)
        try:
            await client.create_connection(with_db=True)
        except sqlite3.Error as error:
            await client.close()
            message = f"the database of the connection {self.name!r} cannot be opened"
            raise TaskError("sql_connection", message, retryable=True) from error
        return client


class SqliteRows:
    """The rows of a running statement."""

    def __init__(self, client: _Guarded, cursor: aiosqlite.Cursor, names: list[str]) -> None:
        self._client = client
        self._cursor = cursor
        self._names = names
        self._types = dict.fromkeys(names, "null")

    @property
    def columns(self) -> list[Column]:
        """A column's type is the storage class of its first value that is not NULL."""
        return [Column(name, type_) for name, type_ in self._types.items()]

    async def __aiter__(self) -> AsyncIterator[list[Row]]:
        size = rows.FIRST_PORTION
        while True:
            with _explained(self._client):
                fetched = await self._cursor.fetchmany(size)
            portion: list[Row] = [dict(zip(self._names, row, strict=True)) for row in fetched]
            unknown = [name for name, type_ in self._types.items() if type_ == "null"]
            for name in unknown:
                self._types[name] = next(
                    (_class(row[name]) for row in portion if row[name] is not None), "null"
                )
            if portion:
                yield portion
            if len(portion) < size:
                return
            size = rows.portion(size, portion)


class SqliteTransaction:
    """Statements between BEGIN and COMMIT."""

    def __init__(self, client: _Guarded) -> None:
        self._client = client

    async def execute(
        self, sql: str, params: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> int:
        """Run one statement; how many rows it wrote, or returned. Raises TaskError."""
        async with self._run(sql, params) as cursor:
            if cursor.description is None:
                return max(0, cursor.rowcount)
            count = 0
            while portion := len(list(await cursor.fetchmany(rows.FIRST_PORTION))):
                count += portion
            return count

    async def first(self, sql: str, params: Mapping[str, Any] | None = None) -> Row | None:
        """The first row of a query."""
        async with self._run(sql, params) as cursor:
            values = await cursor.fetchone()
            names = [description[0] for description in cursor.description]
            return None if values is None else dict(zip(names, values, strict=True))

    async def loader(self, table: str, columns: Sequence[str], key: Sequence[str]) -> Loader:
        """Writes rows into these columns, in place of those that have the same `key`, if one is given."""
        with _explained(self._client):
            schema, dot, name = table.rpartition(".")
            found = await self._client.open.execute_fetchall(
                f"PRAGMA {quoted(schema)}{dot}table_xinfo({quoted(name)})"
                if dot
                else f"PRAGMA table_xinfo({quoted(name)})"
            )
        types = {str(row[1]): str(row[2]) for row in found}
        check_columns(table, types, [*columns, *key])
        return SqliteLoader(
            self._client, sqlite_insert(table, columns, key), [types[name] for name in columns]
        )

    @asynccontextmanager
    async def _run(
        self, sql: str, params: Sequence[Any] | Mapping[str, Any] | None
    ) -> AsyncIterator[aiosqlite.Cursor]:
        text, values = bind(sql, params, "sqlite")
        client = self._client
        with _explained(client):
            client.guarding, client.defining, client.denied = True, True, ""
            try:
                cursor = await client.open.execute(text, [_value(value) for value in values])
                yield cursor
                await cursor.close()
            finally:
                client.guarding = client.defining = False


class SqliteLoader:
    """INSERT of many rows."""

    def __init__(self, client: _Guarded, text: str, types: Sequence[str]) -> None:
        self._client, self._text, self._types = client, text, types

    async def load(self, columns: Sequence[Sequence[Any]]) -> None:
        values = await asyncio.to_thread(self._values, columns)
        connection, client = self._client.open, self._client
        with _explained(client):
            await connection.execute("SAVEPOINT batch")
            client.guarding, client.denied = True, ""
            try:
                await connection.executemany(self._text, values)
            except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError) as error:
                client.guarding = False
                await connection.execute("ROLLBACK TO batch")
                raise RowsRefused(str(error), None) from None
            finally:
                client.guarding = False
            await connection.execute("RELEASE batch")

    def _values(self, columns: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
        return list(zip(*by_column(columns, self._types, sqlite_values), strict=True))


async def _abandon(client: _Guarded) -> None:
    """Close a connection whatever its thread is doing."""
    connection = client.open
    closing = asyncio.ensure_future(client.close())
    end = asyncio.get_running_loop().time() + CLOSE
    # Again and again: an interrupt before the thread has begun its statement has no effect.
    while not closing.done() and asyncio.get_running_loop().time() < end:
        with suppress(ValueError):  # closed in the meantime
            await connection.interrupt()
        await asyncio.wait({closing}, timeout=0.02)


@contextmanager
def _explained(client: _Guarded) -> Iterator[None]:
    """Around everything that runs the statement: SQLite's errors as TaskErrors."""
    try:
        yield
    except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
        raise failure(error, client.denied) from error


def _class(value: Any) -> str:
    match value:
        case int():
            return "integer"
        case float():
            return "real"
        case str():
            return "text"
        case _:
            return "blob"


def _value(value: Any) -> Any:
    if isinstance(value, dict | list):
        raise TaskError(
            "sql_error", "SQLite takes numbers, text, booleans and null as params", retryable=False
        )
    # SQLite keeps fractions as doubles: the nearest one, as for a literal in SQL.
    return float(value) if isinstance(value, Decimal) else value


def failure(error: Exception, denied: str) -> TaskError:
    """SQLite's own short message, and whether the statement may succeed the next time."""
    if denied:
        return TaskError(
            "sql_error", f"{denied} is not allowed on this connection", retryable=False
        )
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    retryable = code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return TaskError("sql_error", str(error).partition("\n")[0], retryable)
