"""The service's own database, SQLite or PostgreSQL, through Tortoise's clients.

A process starts without it: it is connected and migrated when first used. Faults that a later try
may get over are raised as Unavailable.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import asyncpg
from tortoise.backends.base.client import BaseDBAsyncClient
from tortoise.backends.base.config_generator import expand_db_url
from tortoise.context import TortoiseContext
from tortoise.exceptions import BaseORMException, ConfigurationError
from tortoise.migrations.executor import MigrationExecutor
from tortoise.transactions import in_transaction

from tandem_shared.errors import Misconfigured, Unavailable
from tandem_shared.faults import reason_of
from tandem_shared.postgres import asyncpg_options

CONNECT_TIMEOUT_SECONDS = 5.0
STATEMENT_TIMEOUT_SECONDS = 15.0  # of a statement, and of a whole transaction
# All migrations together, including the wait for another process that migrates.
MIGRATION_TIMEOUT_SECONDS = 600.0
MIGRATION_LOCK_ID = 0x7A_6E_64_6D  # PostgreSQL's advisory lock; the number is ours alone
MIGRATIONS = "tandem_shared.ledger.migrations"
APP_LABEL = "tandem"

# SQL with `?` for each value, and the rows of values to run it for.
Statement = tuple[str, Sequence[Sequence[Any]]]


class Database:
    """One database by its URL. Raises Misconfigured for a URL that Tortoise cannot read."""

    def __init__(self, url: str) -> None:
        self.sqlite = url.startswith("sqlite")
        try:
            expanded = expand_db_url(url)
            engine, credentials = expanded["engine"], expanded["credentials"]
            if self.sqlite:
                self._file = Path(credentials["file_path"])
                engine = "tandem_shared.sqlite"
                # Half the timeout: SQLite reports a busy database before we cancel the statement.
                busy_ms = int(STATEMENT_TIMEOUT_SECONDS * 500)
                options = {"busy_timeout": busy_ms, **credentials}
            else:
                options = asyncpg_options(
                    credentials,
                    timeout=CONNECT_TIMEOUT_SECONDS,
                    command_timeout=STATEMENT_TIMEOUT_SECONDS,
                )
        except (ValueError, TypeError, ConfigurationError):
            # The reason may quote the URL, and with it a password.
            raise Misconfigured(
                "TANDEM_DATABASE_URL: not a valid database URL; use sqlite://path or"
                " postgres://user:password@host:port/name, with other characters percent-encoded"
            ) from None
        app = {
            "models": ["tandem_shared.ledger.models"],
            "default_connection": APP_LABEL,
            "migrations": MIGRATIONS,
        }
        connection = {"engine": engine, "credentials": options}
        self._config: dict[str, Any] = {
            "connections": {APP_LABEL: connection},
            "apps": {APP_LABEL: app},
        }
        self._context: TortoiseContext | None = None
        self._client: Any = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        """Close all connections; a server that has gone away is ignored."""
        context, self._context, self._client = self._context, None, None
        if context is not None:
            with suppress(TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                    await context.close_connections()

    async def open(self) -> None:
        """Connect and migrate to the newest schema, once. Raises Unavailable."""
        if self._client is None:
            async with self._opening, _faults():
                if self._client is None:
                    await self._connect()

    async def _connect(self) -> None:
        if self.sqlite:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        context = TortoiseContext()
        try:
            with context:
                await context.init(config=self._config)
                client = context.connections.get(APP_LABEL)
                await self._migrate(client)
        except BaseException:
            async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                await context.close_connections()
            raise
        self._context, self._client = context, client

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        await self.open()
        async with (
            _faults(),
            asyncio.timeout(STATEMENT_TIMEOUT_SECONDS),
            self._client.acquire_connection() as connection,
        ):
            yield connection

    async def read(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query that has `?` for each value. Raises Unavailable."""
        async with self._connection() as connection:
            if self.sqlite:
                rows = await connection.execute_fetchall(sql, values)
            else:
                rows = await connection.fetch(number_placeholders(sql), *values)
            return [tuple(row) for row in rows]

    async def write(self, statements: Sequence[Statement]) -> None:
        """Run all statements in one transaction. Raises Unavailable."""
        async with self._connection() as connection:
            if not self.sqlite:
                async with connection.transaction():
                    for sql, rows in statements:
                        await connection.executemany(number_placeholders(sql), rows)
                return
            try:
                await connection.execute("BEGIN IMMEDIATE")
                for sql, rows in statements:
                    await connection.executemany(sql, rows)
                await connection.execute("COMMIT")
            except BaseException:
                await connection.rollback()
                raise

    async def _migrate(self, client: BaseDBAsyncClient) -> None:
        async with asyncio.timeout(MIGRATION_TIMEOUT_SECONDS):
            if await self._migrated(client):
                return
            async with self._migration_lock(client):
                # Its own table: PostgreSQL would abort the transaction that looks for it in vain.
                await MigrationExecutor(client, {}).migrate(direction="forward")
                # One transaction: the executor by itself records a migration after committing it,
                # so a process that died in between would leave tables that no later try can create.
                async with in_transaction(APP_LABEL) as transaction:
                    # The executor checks again: another process may have migrated meanwhile.
                    executor = MigrationExecutor(transaction, self._config["apps"])
                    await executor.migrate(direction="forward")

    async def _migrated(self, client: Any) -> bool:
        known = {name for _, name, _ in iter_modules(import_module(MIGRATIONS).__path__)}
        try:
            _, rows = await client.execute_query(
                "SELECT name FROM tortoise_migrations WHERE app = 'tandem'"
            )
        except (BaseORMException, asyncpg.PostgresSyntaxError, asyncpg.UndefinedTableError):
            return False  # a new database: the table does not exist yet
        return known <= {row["name"] for row in rows}

    @asynccontextmanager
    async def _migration_lock(self, client: Any) -> AsyncIterator[None]:
        """Let one process migrate at a time; the lock ends with the process that holds it."""
        if not self.sqlite:
            async with client.acquire_connection() as connection:
                await connection.execute(
                    f"SELECT pg_advisory_lock({MIGRATION_LOCK_ID})",
                    timeout=MIGRATION_TIMEOUT_SECONDS,
                )
                try:
                    yield
                finally:
                    await connection.execute(f"SELECT pg_advisory_unlock({MIGRATION_LOCK_ID})")
            return
        # Lock a file beside the database: SQLite's own lock would end with the transaction of the
        # first migration.
        lock = os.open(f"{self._file}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.05)
            yield
        finally:
            os.close(lock)


def number_placeholders(sql: str) -> str:
    """The SQL with `$1`, `$2`, … for each `?`; our statements contain `?` only as a placeholder."""
    first, *others = sql.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(others, 1))


# SQLSTATE classes of a server that is up but cannot serve right now: connection, authorization,
# unknown database, out of resources, operator intervention, locks and deadlocks, system error,
# read-only, and a privilege that is still missing.
_TEMPORARY_SQLSTATES = ("08", "28", "3D", "40", "53", "55", "57", "58", "25", "XX", "42501")


@asynccontextmanager
async def _faults() -> AsyncIterator[None]:
    """Raise Unavailable for temporary faults, in words that reveal no address and no password."""
    try:
        yield
    except asyncpg.PostgresError as error:
        if not (error.sqlstate or "").startswith(_TEMPORARY_SQLSTATES):
            raise
        raise Unavailable(
            f"the ledger's database cannot serve requests now ({_reason(error)})"
        ) from error
    except (
        OSError,
        TimeoutError,
        asyncpg.InterfaceError,
        sqlite3.OperationalError,
        BaseORMException,
    ) as error:
        raise Unavailable(f"the ledger's database does not answer ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, BaseORMException) and error.__cause__ else error
    if isinstance(cause, asyncpg.InvalidAuthorizationSpecificationError):
        return "it refuses this user and password"
    if isinstance(cause, asyncpg.InvalidCatalogNameError):
        return "the database does not exist; create it"
    if isinstance(cause, asyncpg.InsufficientPrivilegeError):
        return "its user lacks a permission"
    if isinstance(cause, sqlite3.OperationalError):
        return str(cause)  # SQLite's words name no path
    return reason_of(cause)
