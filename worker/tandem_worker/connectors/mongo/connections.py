"""The MongoDB servers that tasks may name: `TANDEM_MONGO__<NAME>=mongodb://…/<database>`.

The URL may have one parameter of ours: `lookup=orders,customers` lists the collections that $lookup
and similar stages may read (`*`: all of the database).
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import parse_qsl, quote, urlsplit

from pymongo.errors import ConfigurationError, InvalidURI
from pymongo.uri_parser import parse_uri

from tandem_shared.errors import Misconfigured
from tandem_shared.settings import Settings
from tandem_worker.connectors.mongo.connection import SERVER_TIMEOUT_SECONDS, MongoConnection
from tandem_worker.errors import Permanent


class MongoConnections:
    """All named servers of one worker."""

    def __init__(self, connections: Mapping[str, MongoConnection]) -> None:
        self._connections = connections

    def __call__(self, name: str) -> MongoConnection:
        """The connection of this name, in any case. Raises TaskError `unknown_connection`."""
        connection = self._connections.get(name.lower())
        if connection is None:
            message = f"the worker's settings have no MongoDB connection {name!r}"
            raise Permanent("unknown_connection", message)
        return connection


@asynccontextmanager
async def open_mongo(settings: Settings) -> AsyncIterator[MongoConnections]:
    """The servers in the settings, closed at the end. Raises Misconfigured for an invalid URL."""
    connections = {
        name.lower(): _connection(name.lower(), url) for name, url in settings.mongo.items()
    }
    async with AsyncExitStack() as stack:
        for connection in connections.values():
            stack.push_async_callback(connection.close)
        yield MongoConnections(connections)


def _connection(name: str, url: str) -> MongoConnection:
    setting = f"TANDEM_MONGO__{name.upper()}"
    parts = urlsplit(url)
    if parts.scheme not in ("mongodb", "mongodb+srv"):
        raise Misconfigured(f"{setting}: give mongodb://host:port/database or mongodb+srv://…")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    readable = {part for key, value in pairs if key == "lookup" for part in value.split(",")}
    rest = "&".join(f"{key}={quote(value, safe='')}" for key, value in pairs if key != "lookup")
    driver_url = url.partition("?")[0]
    if rest:
        driver_url += f"?{rest}" if parts.path else f"/?{rest}"
    database = parts.path.strip("/") or None
    server_timeout = SERVER_TIMEOUT_SECONDS
    try:
        if parts.scheme == "mongodb":  # parsing mongodb+srv:// would resolve names
            parsed = parse_uri(driver_url)
            database = parsed["database"]
            # The driver has converted milliseconds to seconds.
            server_timeout = parsed["options"].get("serverSelectionTimeoutMS", server_timeout)
    except (InvalidURI, ConfigurationError, ValueError, TypeError):
        # Leave out the driver's message: it may quote the URL, and with it a password.
        raise Misconfigured(f"{setting}: the value is not a valid MongoDB URL") from None
    return MongoConnection(
        name,
        driver_url,
        database=database,
        readable=frozenset(readable - {""}),
        server_timeout=server_timeout,
    )
