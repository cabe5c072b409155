"""The databases that tasks may name: `TANDEM_SQL__<NAME>=<URL>`, SQLite and PostgreSQL, through Tortoise's clients.

A connection is read-only unless its URL says `mode=rw`. Failures are TaskErrors:

    unknown_connection  no such name in the settings
    unknown_query       no such name in the file of TANDEM_QUERIES, or of another connection
    invalid_params      a named query's params are not those that it declares
    raw_sql_off         the connection's URL says raw=off: only named queries are run
    sql_connection      the database does not answer (retryable), or refuses the settings
    sql_error           the statement is refused or fails; retryable for deadlocks, serialization
                        failures and locks
    read_only           a write on a connection without mode=rw
    timeout             the database ended the statement, since it took longer than the job may
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit

from tortoise.backends.base.config_generator import expand_db_url
from tortoise.exceptions import ConfigurationError

from tandem_shared.errors import Misconfigured
from tandem_shared.settings import Settings
from tandem_worker.connectors.sql.bulk_load import Loader
from tandem_worker.connectors.sql.models import Models, check_modules
from tandem_worker.connectors.sql.named_queries import NamedQuery, load_queries
from tandem_worker.connectors.sql.placeholders import Dialect
from tandem_worker.connectors.sql.postgres import PostgresConnection
from tandem_worker.connectors.sql.rows import Row, Rows, Text
from tandem_worker.connectors.sql.sqlite import SqliteConnection
from tandem_worker.errors import TaskError

_SCHEMES: dict[str, type[SqliteConnection] | type[PostgresConnection]] = {
    "sqlite": SqliteConnection,
    "postgres": PostgresConnection,
    "postgresql": PostgresConnection,
    "asyncpg": PostgresConnection,
}


class Transaction(Protocol):
    """One transaction: what it runs is applied as a whole."""

    async def execute(
        self, sql: str, params: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> int:
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

        `params` is a list for the database's own placeholders (`?`, `$1`) or an object for `:name`;
        values are always bound. `timeout` in seconds. Raises TaskError.
        """

    def csv(
        self, sql: str, params: Sequence[Any] | Mapping[str, Any] | None = None, *, timeout: float
    ) -> AbstractAsyncContextManager[Text]:
        """The same as CSV of the database's own making, with a header, where it `copies`."""

    def transaction(self, *, timeout: float) -> AbstractAsyncContextManager[Transaction]:
        """Run statements that are all applied at the end of the block, or not at all after an exception.

        `timeout` in seconds. Raises TaskError, `read_only` without `mode=rw`.
        """

    def config(self, expanded: Mapping[str, Any]) -> dict[str, Any]:
        """Tortoise's own form of the connection, for models: engine and credentials."""

    async def close(self) -> None:
        """End all that is open."""


class SqlConnections:
    """All named databases of one worker; each connects when first used."""

    def __init__(
        self,
        connections: Mapping[str, SqlConnection],
        queries: Mapping[str, NamedQuery] | None = None,
        raw_off: Collection[str] = (),
        models: Models | None = None,
    ) -> None:
        self._connections = connections
        self._queries = queries or {}
        self._raw_off = raw_off
        self.models = models or Models({}, {})

    def __call__(self, name: str) -> SqlConnection:
        """The connection of this name, in any case. Raises TaskError `unknown_connection`."""
        connection = self._connections.get(name.lower())
        if connection is None:
            message = f"there is no SQL connection named {name!r}: the worker's settings have none"
            raise TaskError("unknown_connection", message, retryable=False)
        return connection

    def raw(self, name: str) -> SqlConnection:
        """The connection for a client's own SQL. Raises TaskError `raw_sql_off` where its URL says `raw=off`."""
        connection = self(name)
        if connection.name in self._raw_off:
            message = f"the connection {name!r} runs named queries only"
            raise TaskError("raw_sql_off", message, retryable=False)
        return connection

    def named(self, name: str, connection: str | None = None) -> NamedQuery:
        """The query that the operator declared by this name, for `connection` if one is given."""
        query = self._queries.get(name)
        if query is None or (
            connection is not None and connection.lower() != query.connection.lower()
        ):
            where = "" if connection is None else f" of the connection {connection!r}"
            raise TaskError(
                "unknown_query", f"there is no query named {name!r}{where}", retryable=False
            )
        return query


@asynccontextmanager
async def open_sql(settings: Settings) -> AsyncIterator[SqlConnections]:
    """The databases of the settings, closed at the end. Raises Misconfigured for a URL that is none."""
    urls = {name.lower(): _own(name.lower(), url) for name, url in settings.sql.items()}
    connections = {name: _connection(name, url, own) for name, (url, own) in urls.items()}
    raw_off = {name for name, (_, own) in urls.items() if own.get("raw") == "off"}
    queries = load_queries(settings.queries, connections)
    modules = {name: own["models"] for name, (_, own) in urls.items() if "models" in own}
    check_modules(modules)
    configs = {name: connections[name].config(expand_db_url(urls[name][0])) for name in modules}
    models = Models(configs, modules)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(models.close)
        for connection in connections.values():
            stack.push_async_callback(connection.close)
        yield SqlConnections(connections, queries, raw_off, models)


# Words of ours in a URL's query, which no driver knows, and their values.
_OWN: dict[str, tuple[str, ...]] = {"mode": ("ro", "rw"), "raw": ("on", "off"), "models": ()}


def _own(name: str, url: str) -> tuple[str, dict[str, str]]:
    """The URL without the words that are ours, and those."""
    query = urlsplit(url).query
    pairs = parse_qsl(query, keep_blank_values=True)
    own = {key: value for key, value in pairs if key in _OWN}
    for key, value in own.items():
        if _OWN[key] and value not in _OWN[key]:
            raise Misconfigured(f"{_setting(name)}: {key} is {' or '.join(_OWN[key])}")
    if not own:
        return url, own
    rest = urlencode([(key, value) for key, value in pairs if key not in _OWN])
    return url.replace(f"?{query}", f"?{rest}" if rest else "", 1), own


def _connection(name: str, url: str, own: Mapping[str, str]) -> SqlConnection:
    scheme = url.partition("://")[0]
    kind = _SCHEMES.get(scheme)
    if kind is None:
        raise Misconfigured(
            f"{_setting(name)}: give sqlite://path, postgres://…, postgresql://… or asyncpg://…"
        )
    try:
        return kind(name, expand_db_url(url)["credentials"], writable=own.get("mode") == "rw")
    except (ValueError, TypeError, ConfigurationError) as error:
        # The driver's words may quote the URL, and with it a password.
        reason = f": {error}" if isinstance(error, ConfigurationError) else ""
        raise Misconfigured(f"{_setting(name)}: this is no URL of a database{reason}") from None


def _setting(name: str) -> str:
    return f"TANDEM_SQL__{name.upper()}"
