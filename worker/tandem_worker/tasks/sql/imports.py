"""A file into a table of a database, in batches within one transaction, and what is wrong with the rows it refused."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from tandem_shared.errors import NotFound
from tandem_shared.files.names import job_path
from tandem_worker.archives.compression import Compression
from tandem_worker.connectors.sql.apply_once import apply_once
from tandem_worker.connectors.sql.bulk_load import Loader, Refused
from tandem_worker.connectors.sql.connections import Transaction
from tandem_worker.connectors.sql.rows import plain
from tandem_worker.errors import TaskError
from tandem_worker.jobs.deadline import call_timeout
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.tables.reader import Record, Records, read
from tandem_worker.tables.stored import Stored
from tandem_worker.tables.writers import format_of
from tandem_worker.task import task
from tandem_worker.tasks.sql.export import Format
from tandem_worker.tasks.sql.payloads import Connection

BAD_FILE = "bad-rows.ndjson"
BATCH_BYTES = 8 << 20  # of a batch in the file, roughly
_IN_MEMORY = 1 << 20  # bytes of bad rows; more go to disk


class Plan(NamedTuple):
    """What to import, and how."""

    source: FileRef
    format: Format
    compression: Compression | None
    table: str
    columns: Sequence[str] | None
    key: Sequence[str]
    batch: int
    max_bad: int


class Imported(NamedTuple):
    """What an import did. `bad_stamp` says which attempt wrote the file of bad rows."""

    row_count: int
    bad_count: int
    bad_stamp: int


class Import:
    """One import, within a transaction."""

    def __init__(self, job: Job, plan: Plan) -> None:
        self._job, self._plan = job, plan
        self._count = self._bad = 0
        self._columns: list[str] = []

    async def run(self, transaction: Transaction) -> Imported:
        """Raises TaskError, `bad_rows` if there are more than `max_bad`."""
        plan = self._plan
        records = await asyncio.to_thread(
            read, Stored(self._job, plan.source), plan.format, plan.compression
        )
        if not records.columns:
            return Imported(0, 0, 0)
        self._columns = records.columns
        chosen = list(plan.columns or records.columns)
        missing = next((name for name in [*chosen, *plan.key] if name not in records.columns), None)
        if missing is not None:
            raise TaskError("invalid_file", f"the file has no column {missing!r}", retryable=False)
        loader = await transaction.loader(plan.table, chosen, plan.key)
        places = [records.columns.index(name) for name in chosen]
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as bad:
            async with aclosing(_batches(records, plan.batch)) as batches:
                async for batch in batches:
                    await self._put(loader, batch, places, bad)
                    await self._job.progress(self._count + self._bad)
            if self._bad:
                await self._job.files.write(BAD_FILE, _contents(bad), "application/x-ndjson")
        return Imported(self._count, self._bad, self._job.stamp)

    async def _put(self, loader: Loader, batch: list[Record], places: list[int], bad: Any) -> None:
        for record in batch:
            if record.problem is not None:
                self._refuse(record, record.problem, bad)
        todo = [[record for record in batch if record.problem is None]]
        while todo:
            part = todo.pop()
            if not part:
                continue
            try:
                values = list(zip(*(record.values for record in part), strict=True))
                await loader.load([values[place] for place in places])
            except Refused as refused:
                if refused.row is None and len(part) > 1:
                    half = len(part) // 2
                    todo += [part[half:], part[:half]]
                    continue
                at = refused.row or 0
                self._refuse(part[at], refused.reason, bad)
                todo += [part[at + 1 :], part[:at]]
            else:
                self._count += len(part)

    def _refuse(self, record: Record, reason: str, bad: Any) -> None:
        self._bad += 1
        if self._bad > self._plan.max_bad:
            more = f" (and {self._bad - 1} bad rows before it)" if self._bad > 1 else ""
            raise TaskError("bad_rows", f"line {record.line}: {reason}{more}", retryable=False)
        row: Any = record.values
        if record.problem is None:
            row = dict(zip(self._columns, record.values, strict=True))
        line = {"line": record.line, "reason": reason, "row": plain(row)}
        bad.write(msgspec.json.encode(line, enc_hook=_any) + b"\n")


async def bad_file(job: Job, imported: Imported) -> FileRef | None:
    """The file of the rows that were refused, as one of this attempt's, whichever attempt wrote it."""
    if not imported.bad_count:
        return None
    if imported.bad_stamp != job.stamp:
        store, path = job.resources.files, job_path(job.id, imported.bad_stamp, BAD_FILE)
        try:
            return await job.files.write(BAD_FILE, store.read(path), "application/x-ndjson")
        except NotFound:
            return None
    return await job.files.stat({"file": f"{job.id}/{BAD_FILE}"})


async def _batches(records: Records, size: int) -> AsyncGenerator[list[Record], None]:
    """The next batch is read while the database writes this one."""
    reading = asyncio.create_task(asyncio.to_thread(_batch, records, size))
    try:
        while batch := await reading:
            reading = asyncio.create_task(asyncio.to_thread(_batch, records, size))
            yield batch
    finally:
        reading.cancel()


def _batch(records: Records, size: int) -> list[Record]:
    batch: list[Record] = []
    weight = 0
    for record in islice(records.rows, size):
        batch.append(record)
        weight += record.size
        if weight > BATCH_BYTES:
            break
    return batch


async def _contents(file: Any) -> AsyncIterator[bytes]:
    file.seek(0)
    while piece := await asyncio.to_thread(file.read, 1 << 20):
        yield piece


def _any(value: Any) -> Any:
    return str(value)


Name = Annotated[str, Field(pattern=r"^[^\u0000]{1,128}$")]


class SqlImport(BaseModel):
    """What `sql.import` takes."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "if": {"properties": {"mode": {"const": "upsert"}}, "required": ["mode"]},
            "then": {"required": ["key"], "properties": {"key": {"type": "array"}}},
            "else": {"properties": {"key": {"type": "null"}}},
        },
    )

    connection: Connection
    table: Annotated[
        str,
        Field(
            pattern=r'^[^\u0000".]{1,128}(\.[^\u0000".]{1,128})?$',
            description="its name, or schema.name",
        ),
    ]
    source: FileRef
    format: Literal["csv", "ndjson", "parquet"] | None = Field(
        None, description="else the file's name says it"
    )
    compression: Literal["gzip", "zstd"] | None = Field(
        None, description="may be left out: the file's start says it"
    )
    columns: Annotated[list[Name], Field(min_length=1, max_length=1600)] | None = Field(
        None, description="of the file's columns those to import; all of them if left out"
    )
    mode: Literal["insert", "upsert"] = "insert"
    key: Annotated[list[Name], Field(min_length=1, max_length=32)] | None = Field(
        None, description="of an upsert: the columns of a unique index"
    )
    batch: int = Field(5000, ge=1, le=100_000, description="rows written at once")
    max_bad: int = Field(
        0, ge=0, le=1_000_000, description="more rows that are refused fail the job as bad_rows"
    )

    @model_validator(mode="after")
    def _keyed(self) -> Self:
        if (self.mode == "upsert") != (self.key is not None):
            raise ValueError("an upsert has a key, an insert has none")
        return self


class SqlImported(TypedDict):
    """What `sql.import` gives; `bad_file` has the line, reason and values of each row that was refused."""

    row_count: int
    bad_count: int
    bad_file: NotRequired[FileRef]


@task(
    "sql.import",
    timeout="10m",
    example={
        "connection": "shop",
        "table": "stock",
        "source": {"file": "01JC8XW3T4Z5PC3V8M2G7QK9RN4HDA"},
        "format": "csv",
        "mode": "upsert",
        "key": ["item"],
        "max_bad": 10,
    },
)
async def import_(job: Job, payload: SqlImport) -> SqlImported:
    """Write a file's rows (CSV, NDJSON, Parquet; plain, gzip or zstd) into a table, applied once.

    All in one transaction, in batches; the connection must say `mode=rw`. Of several rows of one
    key an upsert keeps the last. Rows that the database refuses are left out and listed in a file,
    as long as they are at most `max_bad`.
    """
    source = await job.files.stat(payload.source)
    format = payload.format or format_of(source)
    if format is None or format == "json":
        message = "neither the file's name nor its content type says a format that is imported: give `format`"
        raise TaskError("unknown_format", message, retryable=False)
    plan = Plan(
        source=source,
        format=format,
        compression=payload.compression,
        table=payload.table,
        columns=payload.columns,
        key=payload.key or (),
        batch=payload.batch,
        max_bad=payload.max_bad,
    )
    importing = Import(job, plan)
    applied = await apply_once(
        job.sql(payload.connection), job.id, "sql.import", importing.run, timeout=call_timeout(job)
    )
    imported = Imported(*applied.result)
    done: SqlImported = {"row_count": imported.row_count, "bad_count": imported.bad_count}
    if (file := await bad_file(job, imported)) is not None:
        done["bad_file"] = file
    return done
