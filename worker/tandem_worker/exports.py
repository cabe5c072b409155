"""Rows of a database into a file of a job, in constant memory."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

from tandem_worker.compression import Compression, Deflating
from tandem_worker.encoders import Encoder, Format
from tandem_worker.files import FileRef
from tandem_worker.formats import Buffer, file_name
from tandem_worker.job import Job
from tandem_worker.rows import Column, too_many
from tandem_worker.sql import SqlConnection


class Source(NamedTuple):
    """What to export, and how much at most."""

    connection: SqlConnection
    sql: str
    params: Sequence[Any] | Mapping[str, Any] | None
    max_rows: int | None
    timeout: float  # seconds


class Export:
    """One export. After `run`, `count` and `columns` say what is in the file."""

    def __init__(self, job: Job, source: Source, format: Format, compression: Compression | None) -> None:
        self._job, self._source, self._format, self._compression = job, source, format, compression
        self.count = 0
        self.columns: list[Column] = []

    async def run(self, max_bytes: int | None) -> FileRef:
        """The written file. Raises TaskError, `too_large` above `max_bytes` or `max_rows`."""
        name, content_type = file_name("export", self._format, self._compression)
        copied = self._format == "csv" and self._source.connection.copies
        async with aclosing(self._copied() if copied else self._encoded()) as pieces:
            file = await self._job.files.write(name, pieces, content_type, limit=max_bytes)
        await self._job.progress(self.count, self.count)
        return file

    async def _encoded(self) -> AsyncGenerator[bytes, None]:
        source = self._source
        encoding = Encoder(self._format, self._compression)
        async with source.connection.query(source.sql, source.params, timeout=source.timeout) as result:
            async for portion in result:
                await self._counted(self.count + len(portion))
                if piece := await asyncio.to_thread(encoding.write, portion, result.columns):
                    yield piece
            self.columns = result.columns
        yield await asyncio.to_thread(encoding.finish, self.columns)

    async def _copied(self) -> AsyncGenerator[bytes, None]:
        source = self._source
        buffer = Buffer()
        out = Deflating(buffer, self._compression)
        async with source.connection.csv(source.sql, source.params, timeout=source.timeout) as text:
            async for piece in text:
                await self._counted(text.count)
                if self._compression is None:
                    yield piece
                    continue
                await asyncio.to_thread(out.write, piece)
                yield buffer.take()
            await self._counted(text.count)
            self.columns = text.columns
        out.finish()
        yield buffer.take()

    async def _counted(self, count: int) -> None:
        if self._source.max_rows is not None and count > self._source.max_rows:
            raise too_many(self._source.max_rows)
        self.count = count
        await self._job.progress(count)
