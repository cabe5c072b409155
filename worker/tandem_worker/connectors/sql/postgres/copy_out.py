"""PostgreSQL's COPY TO STDOUT: a query's rows as CSV, written by the server.

COPY takes no parameters and uses the simple protocol, which accepts several statements. So the
values are bound into settings of the transaction, `current_setting('tandem.p1')::int4` replaces
each placeholder, and the server first has to parse the whole text as one statement.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tandem_worker.connectors.sql.postgres.session import PgSession
from tandem_worker.connectors.sql.statements.placeholders import replace_numbered
from tandem_worker.connectors.sql.statements.rows import Column

PIECE_BYTES = 1 << 20
STOP_TIMEOUT_SECONDS = 5.0  # for a COPY that is no longer read
_OPTIONS = "WITH (FORMAT csv, HEADER true)"


class CopyStream:
    """The CSV of a running COPY, in pieces; its first line has the columns' names."""

    def __init__(
        self,
        columns: list[Column],
        pieces: "asyncio.Queue[bytes | None]",
        copying: "asyncio.Task[str]",
        session: PgSession,
    ) -> None:
        self.columns = columns
        self.count = 0  # rows so far
        self._pieces, self._copying, self._session = pieces, copying, session
        self._in_quotes = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        lines = 0
        while (piece := await self._pieces.get()) is not None:
            lines += self._line_ends(piece)
            self.count = max(0, lines - 1)
            yield piece
        with self._session.task_errors():
            status = await self._copying
        self.count = int(status.rpartition(" ")[2])

    def _line_ends(self, piece: bytes) -> int:
        """The number of line feeds outside quoted values."""
        parts = piece.split(b'"')
        outside = parts[1 if self._in_quotes else 0 :: 2]
        self._in_quotes ^= len(parts) % 2 == 0
        return sum(part.count(b"\n") for part in outside)


@asynccontextmanager
async def copy_out(
    session: PgSession, sql: str, arguments: Sequence[Any], statement: Any
) -> AsyncIterator[CopyStream]:
    """COPY the rows of `statement`, prepared from `sql`, within the open transaction."""
    connection = session.connection
    with session.task_errors():
        texts = await _set_parameters(connection, arguments, statement)
        query = f"\n{replace_numbered(sql, texts)}\n"
        await connection.prepare(f"COPY ({query}) TO STDOUT {_OPTIONS}")
    pieces: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=2)
    waiting = bytearray()

    async def put(data: bytes) -> None:
        waiting.extend(data)
        if len(waiting) >= PIECE_BYTES:
            await pieces.put(bytes(waiting))
            waiting.clear()

    async def copy() -> str:
        try:
            status: str = await connection.copy_from_query(
                query, output=put, format="csv", header=True
            )
            await pieces.put(bytes(waiting))
        except Exception:
            await pieces.put(None)
            raise
        await pieces.put(None)
        return status

    copying = asyncio.create_task(copy())
    columns = [Column(column.name, column.type.name) for column in statement.get_attributes()]
    try:
        yield CopyStream(columns, pieces, copying, session)
    finally:
        copying.cancel()
        await asyncio.wait({copying}, timeout=STOP_TIMEOUT_SECONDS)
        if copying.done() and not copying.cancelled():
            copying.exception()  # mark it as retrieved: the reader got it, or has left


async def _set_parameters(connection: Any, arguments: Sequence[Any], statement: Any) -> list[str]:
    """Bind the values to settings of the transaction; returns the SQL that reads each of them."""
    texts = []
    for number, (value, type_) in enumerate(
        zip(arguments, statement.get_parameters(), strict=True), 1
    ):
        # -1: any length. With NULL, `character` and `bit` would mean a length of one.
        name = await connection.fetchval("SELECT format_type($1::oid, -1)", type_.oid)
        if value is None:
            texts.append(f"(NULL::{name})")
            continue
        setting = f"tandem.p{number}"
        await connection.execute(f"SELECT set_config('{setting}', ($1::{name})::text, true)", value)
        texts.append(f"(current_setting('{setting}')::{name})")
    return texts
