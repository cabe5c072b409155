"""The databases that tasks may name: `TANDEM_SQL__<NAME>=<URL>`, SQLite and PostgreSQL, through Tortoise's clients.

A connection is read-only unless its URL says `mode=rw`. Failures are TaskErrors:

    unknown_connection  no such name in the settings
    sql_connection      the database does not answer (retryable), or refuses the settings
    sql_error           the statement is refused or fails; retryable for deadlocks, serialization failures and locks
    read_only           a write on a connection without mode=rw
    timeout             the database ended the statement, since it took longer than the job may
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit

from tortoise.backends.base.config_generator import expand_db_url
from tortoise.exceptions import ConfigurationError

from shared.errors import Misconfigured
from shared.settings import Settings
from worker.errors import TaskError
from worker.loading import Loader
from worker.placeholders import Dialect
from worker.postgres import PostgresConnection
from worker.rows import Row, Rows, Text
from worker.sqlite import SqliteConnection

_SCHEMES: dict[str, type[SqliteConnection] | type[PostgresConnection]] = {
    "sqlite": SqliteConnection,
    "postgres": PostgresConnection,
    "postgresql": PostgresConnection,
    "asyncpg": PostgresConnection,
}


class Transaction(Protocol):
    """One transaction: what it runs is applied as a whole."""

    async def execute(self, sql: str, params: Sequence[Any] | Mapping[str, Any] | None = None) -> int:
        """Run one statement; how many rows it wrote, or returned. Raises TaskError."""

    async def first(self, sql: str, params: Mapping[str, Any] | None = None) -> Row | None:
        """The first row of a query."""

    async def loader(self, table: str, columns: Sequence[str], key: Sequence[str]) -> Loader:
        """Writes rows into these columns, in place of those that have the same `key`, if one is given."""


class SqlConnection(Protocol):
    """A named database as tasks see it, `job.sql(name)`."""

    name: str
    writable: bool
    dialect: Dialect
    copies: bool  # it has `csv`

    def query(
        self, sql: str, params: Sequence[Any] | Mapping[str, Any] | None = None, *, timeout: float
    ) -> AbstractAsyncContextManager[Rows]:
        """Run one statement that returns rows, and read them in portions inside the block.

        `params` is a list for the database's own placeholders (`?`, `$1`) or an object for `:name`; values are always
        bound. `timeout` in seconds. Raises TaskError.
        """

    def csv(
        self, sql: str, params: Sequence[Any] | Mapping[str, Any] | None = None, *, timeout: float
    ) -> AbstractAsyncContextManager[Text]:
        """The same as CSV of the database's own making, with a header, where it `copies`."""

    def transaction(self, *, timeout: float) -> AbstractAsyncContextManager[Transaction]:
        """Run statements that are all applied at the end of the block, or not at all after an exception.

        `timeout` in seconds. Raises TaskError, `read_only` without `mode=rw`.
        """

    async def close(self) -> None:
        """End all that is open."""


class SqlConnections:
    """All named databases of one worker; each connects when first used."""

    def __init__(self, connections: Mapping[str, SqlConnection]) -> None:
        self._connections = connections

    def __call__(self, name: str) -> SqlConnection:
        """The connection of this name, in any case. Raises TaskError `unknown_connection`."""
        connection = self._connections.get(name.lower())
        if connection is None:
            message = f"there is no SQL connection named {name!r}: the worker's settings have none"
            raise TaskError("unknown_connection", message, retryable=False)
        return connection


@asynccontextmanager
async def open_sql(settings: Settings) -> AsyncIterator[SqlConnections]:
    """The databases of the settings, closed at the end. Raises Misconfigured for a URL that is none."""
    connections = {name.lower(): _connection(name.lower(), url) for name, url in settings.sql.items()}
    async with AsyncExitStack() as stack:
        for connection in connections.values():
            stack.push_async_callback(connection.close)
        yield SqlConnections(connections)


def _connection(name: str, url: str) -> SqlConnection:
    setting = f"TANDEM_SQL__{name.upper()}"
    scheme = url.partition("://")[0]
    kind = _SCHEMES.get(scheme)
    if kind is None:
        raise Misconfigured(f"{setting}: give sqlite://path, postgres://…, postgresql://… or asyncpg://…")
    try:
        plain, writable = _mode(url)
        credentials = expand_db_url(plain)["credentials"]
        return kind(name, credentials, writable=writable)
    except (ValueError, TypeError, ConfigurationError) as error:
        # The driver's words may quote the URL, and with it a password.
        reason = f": {error}" if isinstance(error, ConfigurationError) else ""
        raise Misconfigured(f"{setting}: this is no URL of a database{reason}") from None


def _mode(url: str) -> tuple[str, bool]:
    """The URL without `mode=`, which is ours and no driver's, and whether it was `rw`."""
    query = urlsplit(url).query
    pairs = parse_qsl(query, keep_blank_values=True)
    modes = [value for key, value in pairs if key == "mode"]
    if not modes:
        return url, False
    if modes[-1] not in ("ro", "rw"):
        raise ConfigurationError("mode is ro or rw")
    rest = urlencode([(key, value) for key, value in pairs if key != "mode"])
    return url.replace(f"?{query}", f"?{rest}" if rest else "", 1), modes[-1] == "rw"
