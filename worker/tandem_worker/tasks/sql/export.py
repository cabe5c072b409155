"""`sql.export`: rows of a database into a file of a job, in constant memory."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, Literal

import msgspec
from typing_extensions import TypedDict

from tandem_worker.archives.compression import Compression, Deflating
from tandem_worker.connectors.sql.postgres.connection import PostgresConnection
from tandem_worker.connectors.sql.statements.rows import Column, Row, plain, to_json, too_many
from tandem_worker.errors import Permanent
from tandem_worker.jobs.deadline import call_timeout
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.tables.names import output_name
from tandem_worker.tables.table import ColumnBatch, Columns, TableWriter, TypeMismatch, text
from tandem_worker.tables.writers import Buffer, JsonWriter, open_writer
from tandem_worker.task import task
from tandem_worker.tasks.payload import OutputCompression
from tandem_worker.tasks.sql.payloads import MaxBytes, MaxRows, SqlColumn, SqlSource, column_list

ExportFormat = Literal["csv", "ndjson", "parquet"]

_ARROW_TYPES = {
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


class SqlExport(SqlSource):
    """The payload of `sql.export`."""

    format: ExportFormat
    compression: OutputCompression = None
    max_rows: MaxRows = None
    max_bytes: MaxBytes = None


class SqlExported(TypedDict):
    """The result of `sql.export`."""

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
    """Write the rows of one SQL query to a file: CSV, NDJSON or Parquet.

    In all CSV a null is empty and an empty text is `""`. CSV from PostgreSQL has values as the
    server writes them (COPY). NDJSON has them as in `sql.query`; Parquet has native types for
    numbers, booleans, dates, times and bytes.
    """
    running = _Export(job, payload)
    file = await running.run()
    return {
        "file": file,
        "row_count": running.count,
        "columns": column_list(running.columns),
    }


class _Export:
    """One export. After `run`, `count` and `columns` describe the file."""

    def __init__(self, job: Job, payload: SqlExport) -> None:
        self._job, self._payload = job, payload
        self._connection, self._sql, self._params = payload.resolve(job)
        self._timeout = call_timeout(job)
        self.count = 0
        self.columns: list[Column] = []

    async def run(self) -> FileRef:
        """The written file. Raises TaskError, `too_large` above `max_bytes` or `max_rows`."""
        payload = self._payload
        name, content_type = output_name("export", payload.format, payload.compression)
        pieces = self._encoded()
        if payload.format == "csv" and isinstance(self._connection, PostgresConnection):
            pieces = self._copied(self._connection)
        async with aclosing(pieces):
            file = await self._job.files.write(name, pieces, content_type, limit=payload.max_bytes)
        await self._job.progress(self.count, self.count)
        return file

    async def _encoded(self) -> AsyncGenerator[bytes, None]:
        encoder = _RowEncoder(self._payload.format, self._payload.compression)
        async with self._connection.query(self._sql, self._params, timeout=self._timeout) as result:
            async for chunk in result:
                await self._advance(self.count + len(chunk))
                if piece := await asyncio.to_thread(encoder.write, chunk, result.columns):
                    yield piece
            self.columns = result.columns
        yield await asyncio.to_thread(encoder.finish, self.columns)

    async def _copied(self, connection: PostgresConnection) -> AsyncGenerator[bytes, None]:
        compression = self._payload.compression
        buffer = Buffer()
        out = Deflating(buffer, compression)
        async with connection.csv(self._sql, self._params, timeout=self._timeout) as csv:
            async for piece in csv:
                await self._advance(csv.count)
                if compression is None:
                    yield piece
                    continue
                await asyncio.to_thread(out.write, piece)
                yield buffer.take()
            await self._advance(csv.count)
            self.columns = csv.columns
        out.finish()
        yield buffer.take()

    async def _advance(self, count: int) -> None:
        limit = self._payload.max_rows
        if limit is not None and count > limit:
            raise too_many(limit)
        self.count = count
        await self._job.progress(count)


class _RowEncoder:
    """Makes a file of rows. Each call returns the bytes that are ready, and may raise TaskError."""

    def __init__(self, format: ExportFormat, compression: Compression | None) -> None:
        self._format, self._compression = format, compression
        self._buffer = Buffer()
        self._writer: TableWriter | None = None

    def write(self, rows: Sequence[Row], columns: Sequence[Column]) -> bytes:
        with _as_task_errors():
            writer = self._open(columns, rows)
            if isinstance(writer, JsonWriter):
                writer.add([bytes(to_json(row)) for row in rows])
            else:
                values = [[row[column.name] for row in rows] for column in columns]
                writer.write(ColumnBatch(values, len(rows)))
        return self._buffer.take()

    def finish(self, columns: Sequence[Column]) -> bytes:
        with _as_task_errors():
            self._open(columns, ()).end()
        return self._buffer.take()

    def _open(self, columns: Sequence[Column], rows: Sequence[Row]) -> TableWriter:
        if self._writer is None:
            types = [_arrow_type(column, rows) for column in columns]
            table = Columns([column.name for column in columns], types, _text)
            self._writer = open_writer(self._buffer, self._format, self._compression, table)
        return self._writer


def _arrow_type(column: Column, rows: Sequence[Row]) -> str:
    """Arrow's name for the column's type.

    A column of SQLite may start with an integer and hold fractions. The first rows decide; later
    values that do not fit are refused.
    """
    if column.type == "integer" and any(type(row[column.name]) is float for row in rows):
        return "double"
    return _ARROW_TYPES.get(column.type, "string")


def _text(value: Any) -> str:
    if isinstance(value, msgspec.Raw):  # JSON, as the database writes it
        return bytes(value).decode()
    return text(value if type(value) is float else plain(value), plain)


@contextmanager
def _as_task_errors() -> Iterator[None]:
    try:
        yield
    except UnicodeError:
        raise Permanent("sql_error", "a value is not valid Unicode text") from None
    except TypeMismatch as error:
        message = (
            f"the column {error.name!r} is {error.type} in Parquet, which cannot hold one of its"
            " values: cast it to text in the statement"
        )
        raise Permanent("sql_error", message) from None
