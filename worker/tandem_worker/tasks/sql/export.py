"""Rows of a database into a file of a job, in constant memory."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from datetime import date
from typing import Any, Literal, NamedTuple

from pydantic import Field
from typing_extensions import TypedDict

from tandem_worker.archives.compression import Compression, Deflating
from tandem_worker.connectors.sql.connections import SqlConnection
from tandem_worker.connectors.sql.rows import Column, Row, plain, to_json, too_many
from tandem_worker.errors import TaskError
from tandem_worker.jobs.deadline import call_timeout
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.tables.table import Batch, Columns, Misfit, Output, text
from tandem_worker.tables.writers import Buffer, JsonOutput, file_name, open_output
from tandem_worker.task import task
from tandem_worker.tasks.sql.payloads import MaxBytes, MaxRows, SqlColumn, SqlSource

Format = Literal["csv", "ndjson", "parquet"]


class Source(NamedTuple):
    """What to export, and how much at most."""

    connection: SqlConnection
    sql: str
    params: Sequence[Any] | Mapping[str, Any] | None
    max_rows: int | None
    timeout: float  # seconds


class Export:
    """One export. After `run`, `count` and `columns` say what is in the file."""

    def __init__(
        self, job: Job, source: Source, format: Format, compression: Compression | None
    ) -> None:
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
        async with source.connection.query(
            source.sql, source.params, timeout=source.timeout
        ) as result:
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


class SqlExport(SqlSource):
    """What `sql.export` takes."""

    format: Format
    compression: Literal["gzip", "zstd"] | None = Field(
        None, description="of the file; of Parquet, inside of it"
    )
    max_rows: MaxRows = None
    max_bytes: MaxBytes = None


class SqlExported(TypedDict):
    """What `sql.export` gives."""

    file: FileRef
    row_count: int
    columns: list[SqlColumn]


@task(
    "sql.export",
    timeout="10m",
    example={
        "connection": "shop",
        "sql": "SELECT * FROM sales",
        "format": "csv",
        "compression": "gzip",
    },
)
async def export(job: Job, payload: SqlExport) -> SqlExported:
    """Write the rows of one SQL query into a file: CSV, NDJSON or Parquet.

    CSV of PostgreSQL has the server's own words for values (COPY), and like all CSV here nothing
    for NULL and `""` for an empty text. NDJSON has them as `sql.query` does; Parquet has types of
    its own for numbers, booleans, dates, times and bytes.
    """
    connection, text, params = payload.asked(job)
    source = Source(connection, text, params, payload.max_rows, call_timeout(job))
    exporting = Export(job, source, payload.format, payload.compression)
    file = await exporting.run(payload.max_bytes)
    return {
        "file": file,
        "row_count": exporting.count,
        "columns": [{"name": one.name, "type": one.type} for one in exporting.columns],
    }


_ARROW = {
    "int2": "int16",
    "int4": "int32",
    "int8": "int64",
    "integer": "int64",
    "float4": "float",
    "float8": "double",
    "real": "double",
    "bool": "bool",
    "date": "date32",
    "bytea": "binary",
    "blob": "binary",
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
    "time": "time",
}


class Encoder:
    """Makes a file of rows. Each call gives the bytes that are ready by then, and may raise TaskError."""

    def __init__(self, format: Format, compression: Compression | None) -> None:
        self._format, self._compression = format, compression
        self._buffer = Buffer()
        self._output: Output | None = None

    def write(self, rows: Sequence[Row], columns: Sequence[Column]) -> bytes:
        with _explained():
            output = self._begun(columns)
            if isinstance(output, JsonOutput):
                output.add([bytes(to_json(row)) for row in rows])
            else:
                output.write(Batch([self._values(rows, column) for column in columns], len(rows)))
        return self._buffer.take()

    def finish(self, columns: Sequence[Column]) -> bytes:
        with _explained():
            self._begun(columns).end()
        return self._buffer.take()

    def _begun(self, columns: Sequence[Column]) -> Output:
        if self._output is None:
            types = [_ARROW.get(column.type, "string") for column in columns]
            names = [column.name for column in columns]
            self._output = open_output(
                self._buffer, self._format, self._compression, Columns(names, types, _text)
            )
        return self._output

    def _values(self, rows: Sequence[Row], column: Column) -> list[Any]:
        values = [row[column.name] for row in rows]
        if self._format == "parquet" and column.type in ("date", "timestamp", "timestamptz"):
            for value in values:
                if isinstance(value, date) and isinstance(plain(value), str):
                    raise _misfit(column.name, column.type, "an infinity")
        return values


def _text(value: Any) -> str:
    return text(value if type(value) is float else plain(value), plain)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except UnicodeError:
        raise TaskError("sql_error", "a value is no valid Unicode text", retryable=False) from None
    except Misfit as error:
        raise _misfit(error.name, error.type, "another value") from None


def _misfit(name: str, type: str, what: str) -> TaskError:
    message = f"the column {name!r} is of {type} and has {what} too: cast it in the statement"
    return TaskError("sql_error", message, retryable=False)
