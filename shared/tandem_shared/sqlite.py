"""Tortoise's SQLite client without its leaks when connecting or beginning a transaction fails.

Works around these upstream bugs:

- Tortoise 1.1 takes the client's lock before it connects (since tortoise/tortoise-orm#1656, which
  fixed the race of #1655) and keeps it when connecting or BEGIN fails or is cancelled, so every
  later statement waits forever. `_Acquired` and `_Transaction` release it.
- aiosqlite 0.22 does not wait for its thread when opening is cancelled: the thread may then report
  to a closed event loop (omnilib/aiosqlite#241), and the file may stay open (#259).
  `create_connection` joins the thread and closes the file.
- Python's `executescript` commits what was begun before it, so no migration of Tortoise is atomic:
  a process that dies in one leaves tables that no later try can create. `_Statements` runs
  the statements of a script one by one, within the transaction.

Used as an engine of Tortoise's configuration: `tandem_shared.sqlite`.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import aiosqlite
from tortoise.backends.base.client import (
    ConnectionWrapper,
    NestedTransactionContext,
    TransactionalDBClient,
    TransactionContext,
)
from tortoise.backends.sqlite.client import (
    SqliteClient,
    SqliteTransactionContext,
    SqliteTransactionWrapper,
)
from tortoise.connection import get_connections

BUSY_TIMEOUT_SECONDS = 10.0  # how long a statement waits for another connection's lock
JOIN_TIMEOUT_SECONDS = 15.0  # above BUSY_TIMEOUT_SECONDS, which the thread may be waiting for


class SQLiteClient(SqliteClient):
    """One connection with all pragmas set; subclasses override `connect` to open it differently."""

    fetch_rows = 64  # read at once by `async for`

    async def create_connection(self, with_db: bool) -> None:  # noqa: ARG002 - the base class's signature
        if self._connection is not None:
            return
        opened: list[sqlite3.Connection] = []

        def connect() -> sqlite3.Connection:
            opened.append(self.connect())
            return opened[0]

        connection = aiosqlite.Connection(connect, iter_chunk_size=self.fetch_rows)
        try:
            await connection
        except BaseException:
            thread = connection._thread  # noqa: SLF001 - aiosqlite offers no other way to wait
            ended = asyncio.ensure_future(asyncio.to_thread(_end, thread, opened))
            while not ended.done():
                # A second cancellation must not end the wait: the first error is raised below.
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({ended})
            raise
        self._connection = connection
        await self._post_connect()

    def acquire_connection(self) -> ConnectionWrapper[aiosqlite.Connection]:
        return _Acquired(self._lock, self)

    def _in_transaction(self) -> TransactionContext:
        return _Transaction(_Statements(self), self._lock)

    def connect(self) -> sqlite3.Connection:
        """Open the database; runs in the connection's thread. `_end` may close it in another."""
        connection = sqlite3.connect(
            self.filename,
            timeout=BUSY_TIMEOUT_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.row_factory = sqlite3.Row
        return self.set_pragmas(connection)

    def set_pragmas(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """Set all pragmas and return the connection; closes it if SQLite refuses one."""
        try:
            for pragma, value in self.pragmas.items():
                _set_pragma(connection, pragma, value)
        except BaseException:
            connection.close()
            raise
        return connection


class _Acquired(ConnectionWrapper[aiosqlite.Connection]):
    async def ensure_connection(self) -> None:
        try:
            await super().ensure_connection()
        except BaseException:
            self._lock.release()
            raise


class _Statements(SqliteTransactionWrapper):
    def _in_transaction(self) -> TransactionContext:
        return NestedTransactionContext(_Statements(self))

    async def execute_script(self, query: str) -> None:
        statement = ""
        for part in query.split(";"):
            statement += f"{part};"
            if sqlite3.complete_statement(statement):
                await self.execute_query(statement)
                statement = ""


class _Transaction(SqliteTransactionContext):
    async def __aenter__(self) -> TransactionalDBClient:
        await self._trxlock.acquire()
        try:
            await self.ensure_connection()
            await self.connection.begin()
        except BaseException:
            self._trxlock.release()
            raise
        self.token = get_connections().set(self.connection_name, self.connection)
        client: TransactionalDBClient = self.connection
        return client


def _end(thread: threading.Thread, opened: Sequence[sqlite3.Connection]) -> None:
    """Wait for a connection's thread, and close what it opened for a caller that was cancelled."""
    thread.join(JOIN_TIMEOUT_SECONDS)
    for connection in opened:
        connection.close()


def _set_pragma(connection: sqlite3.Connection, pragma: str, value: object) -> None:
    # Retry by hand: SQLite's busy timeout does not cover two connections that set the journal mode
    # at the same time.
    end = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute(f"PRAGMA {pragma}={value}")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
        time.sleep(0.01)  # blocks only the connection's thread


client_class = SQLiteClient  # the name that Tortoise looks for in an engine
