"""Tortoise's SQLite client with connections that are opened whole in their own thread, or not at all.

As an `engine` of Tortoise's configuration: `tandem_shared.sqlite`.
"""

import asyncio
import sqlite3
import time
from contextlib import suppress

import aiosqlite
from tortoise.backends.base.client import (
    ConnectionWrapper,
    TransactionalDBClient,
    TransactionContext,
)
from tortoise.backends.sqlite.client import (
    SqliteClient,
    SqliteTransactionContext,
    SqliteTransactionWrapper,
)
from tortoise.connection import get_connections

BUSY = 10.0  # seconds that a statement waits for another's lock
LAST_WORD = 15.0  # seconds; more than `BUSY`, which a thread may be spending


class Client(SqliteClient):
    """Opened by `connect`; a class of its own may open otherwise."""

    portion = 64  # rows that `async for` reads at once

    async def create_connection(self, with_db: bool) -> None:  # noqa: ARG002 - the base class's signature
        if self._connection is not None:
            return
        connection = aiosqlite.Connection(self.connect, iter_chunk_size=self.portion)
        try:
            await connection
        except BaseException:
            # aiosqlite tells the thread to end and does not wait. What the thread says last would
            # then come to a loop that may be closed, and a file that is being opened would be open
            # still.
            joined = asyncio.ensure_future(asyncio.to_thread(connection._thread.join, LAST_WORD))  # noqa: SLF001 - no other way
            while not joined.done():
                with suppress(
                    asyncio.CancelledError
                ):  # whoever is impatient: what is raised is said below
                    await asyncio.wait({joined})
            raise
        self._connection = connection
        await self._post_connect()

    def acquire_connection(self) -> ConnectionWrapper[aiosqlite.Connection]:
        return _Acquired(self._lock, self)

    def _in_transaction(self) -> TransactionContext:
        return _Transaction(SqliteTransactionWrapper(self), self._lock)

    def connect(self) -> sqlite3.Connection:
        """Runs in the connection's thread."""
        connection = sqlite3.connect(self.filename, timeout=BUSY, isolation_level=None)
        connection.row_factory = sqlite3.Row
        return self.prepared(connection)

    def prepared(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        """With all pragmas set; closed if it refuses one."""
        try:
            for pragma, value in self.pragmas.items():
                _choose(connection, pragma, value)
        except BaseException:
            connection.close()
            raise
        return connection


# Tortoise's own keep the client's lock when they cannot connect, or are cancelled: nobody would get
# it ever again.


class _Acquired(ConnectionWrapper[aiosqlite.Connection]):
    async def ensure_connection(self) -> None:
        try:
            await super().ensure_connection()
        except BaseException:
            self._lock.release()
            raise


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


def _choose(connection: sqlite3.Connection, pragma: str, value: object) -> None:
    """Sets the pragma. Who chooses the journal's mode at the same time is waited for: `timeout` does not cover that."""
    end = time.monotonic() + BUSY
    while True:
        try:
            connection.execute(f"PRAGMA {pragma}={value}")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
        time.sleep(0.01)  # in the connection's own thread


client_class = Client  # the name that Tortoise looks for
