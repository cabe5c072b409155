"""The databases that SQL tasks write to, as their own clients see them."""

import sqlite3
from contextlib import closing
from typing import Any

import asyncpg


class Database:
    """The database's own client."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sqlite = url.startswith("sqlite")

    async def rows(self, text: str) -> list[tuple[Any, ...]]:
        if self.sqlite:
            with closing(sqlite3.connect(self.url.removeprefix("sqlite://"))) as connection, connection:
                return connection.execute(text).fetchall()
        connection = await asyncpg.connect(self.url)
        try:
            return [tuple(row) for row in await connection.fetch(text)]
        finally:
            await connection.close()
