"""A PostgreSQL connection in a transaction, with the types of its database."""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import asyncpg

from tandem_worker.connectors.sql.postgres.errors import task_error
from tandem_worker.connectors.sql.postgres.exchange import Connection, exchange_text
from tandem_worker.connectors.sql.postgres.literals import Types, arguments
from tandem_worker.connectors.sql.statements.placeholders import StatementParams, bind


class PgSession:
    """Prepares statements. `known` holds the types that each open connection has read."""

    def __init__(
        self, name: str, connection: Connection, known: MutableMapping[Connection, Types]
    ) -> None:
        self._name = name
        self._connection = connection
        self._unproxied = getattr(connection, "_con", connection)  # behind the pool's proxy
        self._known = known
        self._prepared: tuple[str, Any] = ("", None)

    @property
    def connection(self) -> Connection:
        """The connection, for other commands than `bind`; they replace the unnamed statement."""
        self._prepared = ("", None)
        return self._connection

    @property
    def types(self) -> Types:
        """The database's types by OID."""
        return self._known[self._unproxied]

    @contextmanager
    def task_errors(self) -> Iterator[None]:
        """Convert errors of calls to the server into TaskErrors."""
        try:
            yield
        except (
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
            OSError,
            EOFError,
        ) as error:
            raise task_error(error, self._name) from error

    async def bind(self, sql: str, params: StatementParams) -> tuple[str, Any, list[Any]]:
        """The text with numbered placeholders, its prepared statement and the arguments.

        The statement is kept for the next call with the same text, such as an INSERT of many rows.
        """
        text, values = bind(sql, params, "postgresql")
        if text != self._prepared[0]:
            with self.task_errors():
                self._prepared = (text, await self._prepare(text))
        statement = self._prepared[1]
        return text, statement, arguments(values, statement.get_parameters(), self.types)

    async def _prepare(self, text: str) -> Any:
        """The statement, unnamed because poolers may give the server's session to others.

        A type that was created after the connection opened is read first.
        """
        statement = await self.connection.prepare(text, name="")
        used = [
            *statement.get_parameters(),
            *(column.type for column in statement.get_attributes()),
        ]
        if all(type_.oid in self.types for type_ in used):
            return statement
        self._known[self._unproxied] = await exchange_text(self._unproxied)
        return await self.connection.prepare(text, name="")
