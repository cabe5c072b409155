"""PostgreSQL's COPY TO STDOUT: a query's rows as CSV, as the server writes them.

COPY knows no parameters and goes through the simple protocol, which takes several statements. So
the values are set, bound, as settings of the transaction, and the text has
`current_setting('tandem.p1')::int4` in their places; and the server itself has to read the whole
text as one statement before it is sent.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any

from tandem_worker.connectors.sql.placeholders import numbered
from tandem_worker.connectors.sql.rows import Column

PIECE = 1 << 20  # bytes
STOP = 5.0  # seconds, of a COPY that nobody reads any more
_OPTIONS = "WITH (FORMAT csv, HEADER true)"

Connection = Any  # asyncpg ships no types


class Copied:
    """The text of a running COPY, in pieces; its first line has the names of the columns."""

    def __init__(
        self,
        columns: list[Column],
        pieces: "asyncio.Queue[bytes | None]",
        copying: "asyncio.Task[str]",
        explained: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.columns = columns
        self.count = 0  # rows so far
        self._pieces, self._copying, self._explained = pieces, copying, explained
        self._outside = True  # of a quoted value

    async def __aiter__(self) -> AsyncIterator[bytes]:
        lines = 0
        while (piece := await self._pieces.get()) is not None:
            lines += self._ends(piece)
            self.count = max(0, lines - 1)
            yield piece
        with self._explained():
            status = await self._copying
        self.count = int(status.rpartition(" ")[2])

    def _ends(self, piece: bytes) -> int:
        """How many lines end in it: line feeds that stand in no quoted value."""
        parts = piece.split(b'"')
        first = 0 if self._outside else 1
        self._outside = self._outside == bool(len(parts) % 2)
        return sum(part.count(b"\n") for part in parts[first::2])


@asynccontextmanager
async def copy_out(
    connection: Connection,
    text: str,
    arguments: Sequence[Any],
    statement: Any,
    explained: Callable[[], AbstractContextManager[None]],
) -> AsyncIterator[Copied]:
    """COPY what `statement`, prepared from `text`, returns for these arguments, within the transaction that is open."""
    with explained():
        query = f"\n{numbered(text, await _settings(connection, arguments, statement))}\n"
        await connection.prepare(f"COPY ({query}) TO STDOUT {_OPTIONS}")
    pieces: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=2)
    waiting = bytearray()

    async def put(data: bytes) -> None:
        waiting.extend(data)
        if len(waiting) >= PIECE:
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
    columns = [Column(one.name, one.type.name) for one in statement.get_attributes()]
    try:
        yield Copied(columns, pieces, copying, explained)
    finally:
        copying.cancel()
        await asyncio.wait({copying}, timeout=STOP)
        if copying.done() and not copying.cancelled():
            copying.exception()  # has been raised where the text was read, or nobody reads any more


async def _settings(connection: Connection, arguments: Sequence[Any], statement: Any) -> list[str]:
    """What stands in the text for each parameter; its value is then in a setting of the transaction."""
    found = []
    for number, (value, type_) in enumerate(
        zip(arguments, statement.get_parameters(), strict=True), 1
    ):
        name = await connection.fetchval("SELECT format_type($1::oid, NULL)", type_.oid)
        if value is None:
            found.append(f"(NULL::{name})")
            continue
        await connection.execute(
            f"SELECT set_config('tandem.p{number}', ($1::{name})::text, true)",
            value,
        )
        found.append(f"(current_setting('tandem.p{number}')::{name})")
    return found
