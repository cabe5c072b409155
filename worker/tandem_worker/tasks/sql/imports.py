"""`sql.import`: a file into a table in one transaction; refused rows are listed in a file."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from itertools import chain
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Self

import msgspec
from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from tandem_shared.errors import NotFound
from tandem_shared.files.names import job_path
from tandem_worker.connectors.sql.apply_once import apply_once
from tandem_worker.connectors.sql.connections import SqlLoader, SqlTransaction
from tandem_worker.connectors.sql.statements.bulk_load import RowsRefused
from tandem_worker.connectors.sql.statements.rows import plain
from tandem_worker.errors import Permanent
from tandem_worker.jobs.deadline import call_timeout
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.tables.batches import batched
from tandem_worker.tables.names import format_of
from tandem_worker.tables.reader import FileRow, read_objects, read_table
from tandem_worker.tables.stored import StoredBytes
from tandem_worker.task import task
from tandem_worker.tasks.payload import FILE_EXAMPLE, ConnectionName, InputCompression, Payload
from tandem_worker.tasks.sql.export import ExportFormat

BAD_ROWS_FILE = "bad-rows.ndjson"
BAD_ROWS_BYTES = 1 << 20  # kept in memory; more go to disk
BATCH_BYTES = 8 << 20  # of the file's rows, roughly

ColumnName = Annotated[str, Field(pattern=r"^[^\u0000]{1,128}$")]


class SqlImport(Payload):
    """The payload of `sql.import`."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"mode": {"const": "upsert"}}, "required": ["mode"]},
            "then": {"required": ["key"], "properties": {"key": {"type": "array"}}},
            "else": {"properties": {"key": {"type": "null"}}},
        },
    )

    connection: ConnectionName
    table: Annotated[
        str,
        Field(
            pattern=r'^[^\u0000".]{1,128}(\.[^\u0000".]{1,128})?$',
            description="its name, or schema.name",
        ),
    ]
    source: FileRef
    format: Literal["csv", "ndjson", "parquet"] | None = Field(
        None, description="default: by the file's name"
    )
    compression: InputCompression = None
    columns: Annotated[list[ColumnName], Field(min_length=1, max_length=1600)] | None = Field(
        None, description="the file's columns to import; default: all"
    )
    mode: Literal["insert", "upsert"] = "insert"
    key: Annotated[list[ColumnName], Field(min_length=1, max_length=32)] | None = Field(
        None, description="for an upsert: the columns of a unique index"
    )
    batch: int = Field(5000, ge=1, le=100_000, description="rows written at once")
    max_bad: int = Field(
        0, ge=0, le=1_000_000, description="more refused rows fail the job as bad_rows"
    )

    @model_validator(mode="after")
    def _keyed(self) -> Self:
        if (self.mode == "upsert") != (self.key is not None):
            raise ValueError("give key with upsert, and only then")
        return self


class SqlImported(TypedDict):
    """The result of `sql.import`; `bad_file` has line, reason and values of each refused row."""

    row_count: int
    bad_count: int
    bad_file: NotRequired[FileRef]


@task(
    "sql.import",
    timeout="10m",
    example={
        "connection": "shop",
        "table": "stock",
        "source": FILE_EXAMPLE,
        "format": "csv",
        "mode": "upsert",
        "key": ["item"],
        "max_bad": 10,
    },
)
async def import_(job: Job, payload: SqlImport) -> SqlImported:
    """Write a file's rows (CSV, NDJSON, Parquet; plain, gzip or zstd) into a table, applied once.

    Batches share one transaction; the connection needs `mode=rw`. Of several rows with one key, an
    upsert keeps the last. Up to `max_bad` rows that the database refuses are left out and listed in
    a file.
    """
    source = await job.files.stat(payload.source)
    format = payload.format or format_of(source)
    if format is None or format == "json":
        message = "the file's name and content type do not say csv, ndjson or parquet: set `format`"
        raise Permanent("unknown_format", message)
    running = _Import(job, payload, source, format)
    applied = await apply_once(
        job.sql(payload.connection), job.id, "sql.import", running.run, timeout=call_timeout(job)
    )
    counts = _Counts(*applied.result)
    done: SqlImported = {"row_count": counts.rows, "bad_count": counts.bad}
    if (file := await _bad_rows_file(job, counts)) is not None:
        done["bad_file"] = file
    return done


class _Counts(NamedTuple):
    """The outcome of an import. `bad_stamp` is that of the attempt that wrote the bad rows."""

    rows: int
    bad: int
    bad_stamp: int


class _Import:
    """One import, within a transaction."""

    def __init__(self, job: Job, payload: SqlImport, source: FileRef, format: ExportFormat) -> None:
        self._job, self._payload, self._source, self._format = job, payload, source, format
        self._count = self._bad = 0
        self._columns: list[str] = []  # of the rows, in the order of their values
        self._loader: SqlLoader | None = None

    async def run(self, transaction: SqlTransaction) -> _Counts:
        """Raises TaskError, `bad_rows` for more than `max_bad`."""
        known = await transaction.columns(self._payload.table)
        stored = StoredBytes(self._job, self._source)  # reads in this loop
        rows = await asyncio.to_thread(self._rows, stored, known)
        with tempfile.SpooledTemporaryFile(BAD_ROWS_BYTES) as bad:
            async with aclosing(_batches(rows, self._payload.batch)) as batches:
                async for batch in batches:
                    await self._write(transaction, batch, bad)
                    await self._job.progress(self._count + self._bad)
            if self._bad:
                await self._job.files.write(BAD_ROWS_FILE, _contents(bad), "application/x-ndjson")
        return _Counts(self._count, self._bad, self._job.stamp)

    def _rows(self, stored: StoredBytes, known: list[str]) -> Iterator[FileRow]:
        """The rows of the file: lists of the values of `columns`, or objects if it is NDJSON."""
        payload = self._payload
        if self._format == "ndjson":
            self._columns = list(payload.columns or ())
            names = None if payload.columns else frozenset(known)
            found = read_objects(stored, self._format, payload.compression, exact=True)
            return _with_known_keys(found, names)
        table = read_table(stored, self._format, payload.compression)
        self._columns = payload.columns or table.columns
        if not table.columns:
            return iter(())
        key = payload.key or []
        missing = next((name for name in [*self._columns, *key] if name not in table.columns), None)
        if missing is not None:
            raise Permanent("invalid_file", f"the file has no column {missing!r}")
        if self._columns == table.columns:
            return table.rows
        return _chosen(table.rows, [table.columns.index(name) for name in self._columns])

    async def _write(self, transaction: SqlTransaction, batch: list[FileRow], bad: Any) -> None:
        payload = self._payload
        good = [row for row in batch if not row.problem]
        if self._format == "ndjson":
            self._spread(good)
        if self._loader is None and self._columns:
            self._loader = await transaction.loader(
                payload.table,
                self._columns,
                payload.key or [],
                json_is_text=self._format != "ndjson",
            )
        for row in batch:
            if row.problem:
                self._refuse(row, row.problem, row.value, bad)
        if self._loader is not None and good:
            await self._load(self._loader, good, bad)

    def _spread(self, rows: list[FileRow]) -> None:
        """Turn objects into lists. A key that is new to the file adds a column."""
        if self._payload.columns is None:
            columns = dict.fromkeys(self._columns)
            for row in rows:
                if not columns.keys() >= row.value.keys():
                    columns |= dict.fromkeys(row.value)
            if len(columns) > len(self._columns):
                self._columns = list(columns)
                self._loader = None
        for row in rows:
            row.value = list(map(row.value.get, self._columns))

    async def _load(self, loader: SqlLoader, rows: list[FileRow], bad: Any) -> None:
        waiting = [rows]
        while waiting:
            part = waiting.pop()
            if not part:
                continue
            try:
                await loader.load(list(zip(*(row.value for row in part), strict=True)))
            except RowsRefused as refused:
                if refused.row is None and len(part) > 1:
                    half = len(part) // 2
                    waiting += [part[half:], part[:half]]
                    continue
                at = refused.row or 0
                fields = dict(zip(self._columns, part[at].value, strict=True))
                self._refuse(part[at], refused.reason, fields, bad)
                waiting += [part[at + 1 :], part[:at]]
            else:
                self._count += len(part)

    def _refuse(self, row: FileRow, reason: str, value: Any, bad: Any) -> None:
        self._bad += 1
        if self._bad > self._payload.max_bad:
            more = f" ({self._bad - 1} more before it)" if self._bad > 1 else ""
            raise Permanent("bad_rows", f"line {row.line}: {reason}{more}")
        entry = {"line": row.line, "reason": reason, "row": plain(value)}
        bad.write(msgspec.json.encode(entry, enc_hook=str) + b"\n")


def _with_known_keys(rows: Iterator[FileRow], names: frozenset[str] | None) -> Iterator[FileRow]:
    """Rows with a key that is not among `names` have a problem; None: every key may come.

    Raises TaskError for a file whose first row cannot be read: it is probably not NDJSON.
    """
    first = next(rows, None)
    if first is None:
        return
    if first.problem:
        raise Permanent("invalid_file", f"line {first.line}: {first.problem}")
    for row in chain((first,), rows):
        if names is not None and not row.problem and not names.issuperset(row.value):
            unknown = next(name for name in row.value if name not in names)
            row.problem = f"the table has no column {unknown!r}"
        yield row


def _chosen(rows: Iterator[FileRow], places: list[int]) -> Iterator[FileRow]:
    for row in rows:
        if not row.problem:
            row.value = [row.value[place] for place in places]
        yield row


async def _bad_rows_file(job: Job, counts: _Counts) -> FileRef | None:
    """The file of the refused rows as a file of this attempt, whichever attempt wrote it."""
    if not counts.bad:
        return None
    if counts.bad_stamp != job.stamp:
        store, path = job.resources.files, job_path(job.id, counts.bad_stamp, BAD_ROWS_FILE)
        try:
            return await job.files.write(BAD_ROWS_FILE, store.read(path), "application/x-ndjson")
        except NotFound:
            return None
    return await job.files.stat({"file": f"{job.id}/{BAD_ROWS_FILE}"})


async def _batches(rows: Iterator[FileRow], size: int) -> AsyncGenerator[list[FileRow], None]:
    """Batches of rows; the next one is read while the database writes this one."""
    batches = batched(rows, size, BATCH_BYTES)
    reading = asyncio.create_task(asyncio.to_thread(next, batches, []))
    try:
        while batch := await reading:
            reading = asyncio.create_task(asyncio.to_thread(next, batches, []))
            yield batch
    finally:
        reading.cancel()


async def _contents(file: Any) -> AsyncIterator[bytes]:
    file.seek(0)
    while piece := await asyncio.to_thread(file.read, 1 << 20):
        yield piece
