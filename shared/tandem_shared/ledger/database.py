"""The service's own database through Tortoise's clients: SQLite or PostgreSQL, connected and migrated when first used.

Nothing here needs the database when a process starts, and a fault of it is Unavailable: who asks
again later is served as soon as it answers again.
"""

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any
from urllib.parse import unquote

import asyncpg
from tortoise.backends.base.client import BaseDBAsyncClient
from tortoise.backends.base.config_generator import expand_db_url
from tortoise.context import TortoiseContext
from tortoise.exceptions import BaseORMException, ConfigurationError
from tortoise.migrations.executor import MigrationExecutor

from tandem_shared.errors import Misconfigured, Unavailable

CONNECT_TIMEOUT_SECONDS = 5.0  # seconds
STATEMENT_TIMEOUT_SECONDS = 15.0  # seconds that a statement or a transaction may take
MIGRATION_TIMEOUT_SECONDS = (
    600.0  # seconds that all migrations together may take, those of others waited for included
)
MIGRATION_LOCK_ID = 0x7A_6E_64_6D  # PostgreSQL's advisory lock: a number that is ours
MIGRATIONS = "tandem_shared.ledger.migrations"
APP_LABEL = "tandem"

Statement = tuple[
    str, Sequence[Sequence[Any]]
]  # with `?` for each value, and the rows to run it for


class Database:
    """One database by its URL. Raises Misconfigured for one that is none."""

    def __init__(self, url: str) -> None:
        try:
            expanded = expand_db_url(url)
        except (ValueError, TypeError, ConfigurationError):
            raise Misconfigured("TANDEM_DATABASE_URL: this is no URL of a database") from None
        given = dict(expanded["credentials"])
        self.sqlite = url.startswith("sqlite")
        if self.sqlite:
            self._file = Path(given["file_path"])
            engine, options = (
                "tandem_shared.sqlite",
                {"busy_timeout": int(STATEMENT_TIMEOUT_SECONDS * 500), **given},
            )
        else:
            if (mode := given.pop("sslmode", None)) is not None:  # libpq's name for it
                given["ssl"] = mode
            if isinstance(given.get("user"), str):
                given["user"] = unquote(given["user"])
            engine = expanded["engine"]
            options = {
                "timeout": CONNECT_TIMEOUT_SECONDS,
                "command_timeout": STATEMENT_TIMEOUT_SECONDS,
                "application_name": "tandem-jobs",
                **given,
            }
        self._config: dict[str, Any] = {
            "connections": {APP_LABEL: {"engine": engine, "credentials": options}},
            "apps": {
                APP_LABEL: {
                    "models": ["tandem_shared.ledger.models"],
                    "default_connection": APP_LABEL,
                    "migrations": MIGRATIONS,
                }
            },
        }
        self._context: TortoiseContext | None = None
        self._client: Any = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        """Ends its connections."""
        context, self._context, self._client = self._context, None, None
        if context is not None:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
                    await context.close_connections()
            except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                return  # it is not there to be told

    async def open(self) -> None:
        """Connected, and the schema is the newest. Raises Unavailable."""
        if self._client is not None:
            return
        async with self._opening, _faults():
            if self._client is None:
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

    async def read(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query with `?` for each value. Raises Unavailable."""
        await self.open()
        async with (
            _faults(),
            asyncio.timeout(STATEMENT_TIMEOUT_SECONDS),
            self._client.acquire_connection() as connection,
        ):
            if self.sqlite:
                return [tuple(row) for row in await connection.execute_fetchall(sql, values)]
            return [tuple(row) for row in await connection.fetch(number_placeholders(sql), *values)]

    async def write(self, statements: Sequence[Statement]) -> int:
        """Runs all in one transaction; how many rows the last one changed, in SQLite. Raises Unavailable."""
        await self.open()
        async with (
            _faults(),
            asyncio.timeout(STATEMENT_TIMEOUT_SECONDS),
            self._client.acquire_connection() as connection,
        ):
            if not self.sqlite:
                async with connection.transaction():
                    for sql, rows in statements:
                        await connection.executemany(number_placeholders(sql), rows)
                return 0
            try:
                await connection.execute("BEGIN IMMEDIATE")
                for sql, rows in statements:
                    cursor = await connection.executemany(sql, rows)
                changed = cursor.rowcount
                await connection.execute("COMMIT")
            except BaseException:
                await connection.rollback()
                raise
            return int(changed)

    # ----------------------------------------------------------------------------------- migrations

    async def _migrate(self, client: BaseDBAsyncClient) -> None:
        async with asyncio.timeout(MIGRATION_TIMEOUT_SECONDS):
            if await self._newest(client):
                return
            async with self._alone(client):
                # Another process may have been first: the executor looks again.
                executor = MigrationExecutor(client, self._config["apps"])
                await executor.migrate(direction="forward")

    async def _newest(self, client: Any) -> bool:
        known = {name for _, name, _ in iter_modules(import_module(MIGRATIONS).__path__)}
        try:
            _, rows = await client.execute_query(
                "SELECT name FROM tortoise_migrations WHERE app = 'tandem'"
            )
        except (BaseORMException, asyncpg.PostgresSyntaxError, asyncpg.UndefinedTableError):
            return False  # there is no such table yet
        return known <= {row["name"] for row in rows}

    @asynccontextmanager
    async def _alone(self, client: Any) -> AsyncIterator[None]:
        """One process at a time, however many start at once; whoever dies lets go."""
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
        # A lock of the database's own would end with the first migration's transaction.
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
    """The same with `$1`, `$2`, … for each `?`; there is none inside of our texts."""
    first, *others = sql.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(others, 1))


# Classes of SQLSTATE that say that the server is there and cannot serve now, or could not just
# then: connection, authorization, no such database, out of resources, operator, locks and
# deadlocks, system error, read-only.
_AWAY = ("08", "28", "3D", "40", "53", "55", "57", "58", "25", "XX")


@asynccontextmanager
async def _faults() -> AsyncIterator[None]:
    """Says Unavailable for what another try may get over, in words without an address or a password."""
    try:
        yield
    except asyncpg.PostgresError as error:
        if (error.sqlstate or "").startswith(_AWAY):
            raise Unavailable(
                f"the ledger's database cannot serve now ({type(error).__name__})"
            ) from error
        raise
    except (
        OSError,
        TimeoutError,
        asyncpg.InterfaceError,
        sqlite3.OperationalError,
        BaseORMException,
    ) as error:
        raise Unavailable(
            f"the ledger's database does not answer ({type(error).__name__})"
        ) from error
