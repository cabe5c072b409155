"""The SQLite and PostgreSQL databases that tasks may name: `TANDEM_SQL__<NAME>=<URL>`.

A connection is read-only unless its URL has `mode=rw`. Failures are TaskErrors:

    unknown_connection  the settings have no connection of this name
    unknown_query       the file of TANDEM_QUERIES has no query of this name for the connection
    invalid_params      the params do not match those that a named query declares
    raw_sql_off         the connection's URL has raw=off: it only runs named queries
    sql_connection      the database does not answer (retryable), or rejects the settings
    sql_error           the statement is rejected or fails; retryable for deadlocks, serialization
                        failures and locks
    read_only           a write on a connection without mode=rw
    timeout             the database stopped the statement at the job's deadline
"""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import parse_qsl, urlencode, urlsplit

from tortoise.backends.base.config_generator import expand_db_url
from tortoise.exceptions import ConfigurationError

from tandem_shared.errors import Misconfigured
from tandem_shared.settings import Settings
from tandem_worker.connectors.sql.models import Models, check_modules
from tandem_worker.connectors.sql.named_queries import NamedQuery, load_queries
from tandem_worker.connectors.sql.postgres.connection import PostgresConnection, PostgresTransaction
from tandem_worker.connectors.sql.postgres.load import PostgresLoader
from tandem_worker.connectors.sql.sqlite.connection import SqliteConnection, SqliteTransaction
from tandem_worker.connectors.sql.sqlite.load import SqliteLoader
from tandem_worker.errors import Permanent

# What tasks see: `job.sql(name)` is an SqlConnection.
SqlConnection = PostgresConnection | SqliteConnection
SqlTransaction = PostgresTransaction | SqliteTransaction
SqlLoader = PostgresLoader | SqliteLoader

_SCHEMES: dict[str, type[SqlConnection]] = {
    "sqlite": SqliteConnection,
    "postgres": PostgresConnection,
    "postgresql": PostgresConnection,
    "asyncpg": PostgresConnection,
}


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
            message = f"the worker's settings have no SQL connection {name!r}"
            raise Permanent("unknown_connection", message)
        return connection

    def raw(self, name: str) -> SqlConnection:
        """The connection for a client's own SQL. Raises Permanent `raw_sql_off` for `raw=off`."""
        connection = self(name)
        if connection.name in self._raw_off:
            message = f"the connection {name!r} only runs named queries: give `query`, not `sql`"
            raise Permanent("raw_sql_off", message)
        return connection

    def named(self, name: str, connection: str | None = None) -> NamedQuery:
        """The query that the operator declared by this name, for `connection` if given."""
        query = self._queries.get(name)
        if query is None or (
            connection is not None and connection.lower() != query.connection.lower()
        ):
            where = "" if connection is None else f" for the connection {connection!r}"
            raise Permanent("unknown_query", f"the worker's settings have no query {name!r}{where}")
        return query


@asynccontextmanager
async def open_sql(settings: Settings) -> AsyncIterator[SqlConnections]:
    """The databases in the settings, closed at the end. Raises Misconfigured for an invalid URL."""
    urls = {name.lower(): _split_options(name.lower(), url) for name, url in settings.sql.items()}
    connections = {name: _connection(name, url, ours) for name, (url, ours) in urls.items()}
    raw_off = {name for name, (_, ours) in urls.items() if ours.get("raw") == "off"}
    queries = load_queries(settings.queries, connections)
    modules = {name: ours["models"] for name, (_, ours) in urls.items() if "models" in ours}
    check_modules(modules)
    configs = {name: connections[name].config(expand_db_url(urls[name][0])) for name in modules}
    models = Models(configs, modules)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(models.close)
        for connection in connections.values():
            stack.push_async_callback(connection.close)
        yield SqlConnections(connections, queries, raw_off, models)


# Our own parameters in a URL, which drivers do not know, and their values (any, if empty).
_OPTIONS: dict[str, tuple[str, ...]] = {"mode": ("ro", "rw"), "raw": ("on", "off"), "models": ()}


def _split_options(name: str, url: str) -> tuple[str, dict[str, str]]:
    """The URL without our own parameters, and these."""
    query = urlsplit(url).query
    pairs = parse_qsl(query, keep_blank_values=True)
    ours = {key: value for key, value in pairs if key in _OPTIONS}
    for key, value in ours.items():
        if _OPTIONS[key] and value not in _OPTIONS[key]:
            allowed = " or ".join(_OPTIONS[key])
            raise Misconfigured(f"{_setting(name)}: {key}={value!r} is not valid; use {allowed}")
    if not ours:
        return url, ours
    rest = urlencode([(key, value) for key, value in pairs if key not in _OPTIONS])
    return url.replace(f"?{query}", f"?{rest}" if rest else "", 1), ours


def _connection(name: str, url: str, ours: Mapping[str, str]) -> SqlConnection:
    scheme = url.partition("://")[0]
    kind = _SCHEMES.get(scheme)
    if kind is None:
        raise Misconfigured(
            f"{_setting(name)}: give sqlite://path, postgres://…, postgresql://… or asyncpg://…"
        )
    try:
        return kind(name, expand_db_url(url)["credentials"], writable=ours.get("mode") == "rw")
    except (ValueError, TypeError, ConfigurationError) as error:
        # Only Tortoise's own message is safe: others may quote the URL, and with it a password.
        reason = f": {error}" if isinstance(error, ConfigurationError) else ""
        raise Misconfigured(f"{_setting(name)}: not a valid database URL{reason}") from None


def _setting(name: str) -> str:
    return f"TANDEM_SQL__{name.upper()}"
