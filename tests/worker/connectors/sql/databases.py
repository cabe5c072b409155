"""The databases of the tests, through the databases' own clients."""

import os
import secrets
import sqlite3
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg


class Database:
    """The database's own client."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sqlite = url.startswith("sqlite")

    async def rows(self, text: str) -> list[tuple[Any, ...]]:
        if self.sqlite:
            with (
                closing(sqlite3.connect(self.url.removeprefix("sqlite://"))) as connection,
                connection,
            ):
                return connection.execute(text).fetchall()
        connection = await asyncpg.connect(self.url)
        try:
            return [tuple(row) for row in await connection.fetch(text)]
        finally:
            await connection.close()


REAL_MONGO = os.environ.get("TANDEM_TEST_MONGO_URL", "")
MONGOS = ["nx", "real"] if REAL_MONGO else ["nx"]  # the servers for tests of MongoDB


def mongo_database(server: str) -> str:
    """The URL of a new database on the server of this URL, which may have parameters."""
    parts = urlsplit(server)
    query = "&".join(filter(None, (parts.query, "authSource=admin" if "@" in parts.netloc else "")))
    return urlunsplit((parts.scheme, parts.netloc, f"/test_{secrets.token_hex(4)}", query, ""))
