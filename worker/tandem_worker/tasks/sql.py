"""SQL tasks: `sql.query`, `sql.execute`, `sql.export`, `sql.import`."""

import time
from typing import Annotated, Any, Literal, NotRequired, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from tandem_worker import rows
from tandem_worker.applied import apply_once
from tandem_worker.errors import TaskError
from tandem_worker.exports import Export, Source
from tandem_worker.files import FileRef
from tandem_worker.formats import format_of
from tandem_worker.imports import Import, Imported, Plan, bad_file
from tandem_worker.job import Job
from tandem_worker.sql import SqlConnection, Transaction
from tandem_worker.task import task

MAX_RESULT_ROWS = 1000
MAX_RESULT_BYTES = 16 << 20
REPORT_EVERY = 5000  # rows
GRACE = 1.0  # seconds after the job's deadline: its own timeout comes first


Connection = Annotated[str, Field(min_length=1, max_length=128, description="a name from the worker's settings")]
Sql = Annotated[str, Field(pattern=r"^[^\u0000]*[^\s\u0000][^\u0000]*$", description="one statement")]
Params = Annotated[
    list[Any] | dict[str, Any] | None,
    Field(description="a list for the database's own placeholders (?, $1), an object for :name"),
]

MaxRows = Annotated[Annotated[int, Field(ge=1)] | None, Field(description="more rows fail the job as too_large")]
MaxBytes = Annotated[
    Annotated[int, Field(ge=1)] | None, Field(description="more bytes of output or of the file fail it likewise")
]

_OF_SQL = {"connection": "string", "sql": "string", "query": "null"}


class SqlSource(BaseModel):
    """One query: SQL of the client's own for a connection, or one that the operator has declared by name."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "oneOf": [
                {
                    "required": ["connection", "sql"],
                    "properties": {key: {"type": kind} for key, kind in _OF_SQL.items()},
                },
                {"required": ["query"], "properties": {"query": {"type": "string"}, "sql": {"type": "null"}}},
            ]
        },
    )

    connection: Connection | None = Field(None, description="may be left out with `query`")
    sql: Sql | None = None
    query: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        None, description="a query's name in the worker's settings"
    )
    params: Params = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.sql is None) == (self.query is None):
            raise ValueError("give either sql or query")
        if self.sql is not None and self.connection is None:
            raise ValueError("sql needs a connection")
        return self

    def asked(self, job: Job) -> tuple[SqlConnection, str, list[Any] | dict[str, Any] | None]:
        """The connection, the text and its params. Raises TaskError."""
        known = job.resources.sql
        if self.query is None:
            return known.raw(self.connection or ""), self.sql or "", self.params
        query = known.named(self.query, self.connection)
        return known(query.connection), query.sql, query.check(self.params)


class SqlQuery(SqlSource):
    """What `sql.query` takes."""

    max_rows: MaxRows = None
    max_bytes: MaxBytes = None
    as_: Literal["output", "result"] = Field(
        "output", alias="as", description="rows as output items, or in the result (at most 1,000)"
    )


class SqlColumn(TypedDict):
    """A column and the database's name for its type."""

    name: str
    type: str


class SqlResult(TypedDict):
    """What `sql.query` gives; `rows` only with `as: result`."""

    row_count: int
    columns: list[SqlColumn]
    rows: NotRequired[list[dict[str, Any]]]


@task(
    "sql.query",
    timeout="10m",
    example={"connection": "analytics", "sql": "SELECT * FROM orders WHERE city = :city", "params": {"city": "Oslo"}},
)
async def query(job: Job, payload: SqlQuery) -> SqlResult:
    """Run one SQL query and stream its rows.

    Rows are objects; decimals are strings, times RFC 3339, intervals ISO 8601 durations, bytes base64.
    """
    connection, text, params = payload.asked(job)
    kept: list[msgspec.Raw] = []
    size = count = 0
    limit = MAX_RESULT_ROWS if payload.as_ == "result" else None
    if payload.max_rows is not None:
        limit = min(payload.max_rows, limit or payload.max_rows)
    max_bytes = payload.max_bytes
    if payload.as_ == "result":
        max_bytes = min(MAX_RESULT_BYTES, max_bytes or MAX_RESULT_BYTES)
    async with connection.query(text, params, timeout=_timeout(job)) as result:
        async for portion in result:
            for row in portion:
                if count == limit:
                    raise rows.too_many(limit)
                count += 1
                item = rows.to_json(row)
                size += len(bytes(item))
                if max_bytes is not None and size > max_bytes:
                    raise _too_large(f"the rows of the result have more than {max_bytes} bytes")
                if payload.as_ == "output":
                    await job.emit(item)
                else:
                    kept.append(item)
                if count % REPORT_EVERY == 0:
                    await job.progress(count)
        columns: list[SqlColumn] = [{"name": one.name, "type": one.type} for one in result.columns]
    await job.progress(count, count)
    done: SqlResult = {"row_count": count, "columns": columns}
    if payload.as_ == "result":
        done["rows"] = [msgspec.json.decode(item) for item in kept]
    return done


class SqlExport(SqlSource):
    """What `sql.export` takes."""

    format: Literal["csv", "ndjson", "parquet"]
    compression: Literal["gzip", "zstd"] | None = Field(None, description="of the file; of Parquet, inside of it")
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
    example={"connection": "shop", "sql": "SELECT * FROM sales", "format": "csv", "compression": "gzip"},
)
async def export(job: Job, payload: SqlExport) -> SqlExported:
    """Write the rows of one SQL query into a file: CSV, NDJSON or Parquet.

    CSV of PostgreSQL has the server's own words for values (COPY), and like all CSV here nothing for NULL and `""` for
    an empty text. NDJSON has them as `sql.query` does; Parquet has types of its own for numbers, booleans, dates, times
    and bytes.
    """
    connection, text, params = payload.asked(job)
    source = Source(connection, text, params, payload.max_rows, _timeout(job))
    exporting = Export(job, source, payload.format, payload.compression)
    file = await exporting.run(payload.max_bytes)
    return {
        "file": file,
        "row_count": exporting.count,
        "columns": [{"name": one.name, "type": one.type} for one in exporting.columns],
    }


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
        str, Field(pattern=r'^[^\u0000".]{1,128}(\.[^\u0000".]{1,128})?$', description="its name, or schema.name")
    ]
    source: FileRef
    format: Literal["csv", "ndjson", "parquet"] | None = Field(None, description="else the file's name says it")
    compression: Literal["gzip", "zstd"] | None = Field(None, description="may be left out: the file's start says it")
    columns: Annotated[list[Name], Field(min_length=1, max_length=1600)] | None = Field(
        None, description="of the file's columns those to import; all of them if left out"
    )
    mode: Literal["insert", "upsert"] = "insert"
    key: Annotated[list[Name], Field(min_length=1, max_length=32)] | None = Field(
        None, description="of an upsert: the columns of a unique index"
    )
    batch: int = Field(5000, ge=1, le=100_000, description="rows written at once")
    max_bad: int = Field(0, ge=0, le=1_000_000, description="more rows that are refused fail the job as bad_rows")

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

    All in one transaction, in batches; the connection must say `mode=rw`. Of several rows of one key an upsert keeps
    the last. Rows that the database refuses are left out and listed in a file, as long as they are at most `max_bad`.
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
    applied = await apply_once(job.sql(payload.connection), job.id, "sql.import", importing.run, timeout=_timeout(job))
    imported = Imported(*applied.result)
    done: SqlImported = {"row_count": imported.row_count, "bad_count": imported.bad_count}
    if (file := await bad_file(job, imported)) is not None:
        done["bad_file"] = file
    return done


class SqlStatement(BaseModel):
    """One statement, run once with `params` or once for each of `rows`."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"not": {"required": ["params", "rows"]}})

    sql: Sql
    params: Params = None
    rows: Annotated[list[list[Any] | dict[str, Any]], Field(description="params of each run")] | None = None

    @model_validator(mode="after")
    def _either(self) -> Self:
        if {"params", "rows"} <= self.model_fields_set:
            raise ValueError("give params or rows, not both")
        return self


class SqlExecute(BaseModel):
    """What `sql.execute` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    connection: Connection
    statements: list[SqlStatement] = Field(min_length=1, max_length=10_000)


class SqlExecuted(TypedDict):
    """What `sql.execute` gives: rows written (or returned) by each statement, and which attempt's work it was."""

    rowcounts: list[int]
    applied: Literal["now", "before"]


@task(
    "sql.execute",
    timeout="10m",
    example={
        "connection": "shop",
        "statements": [
            {"sql": "UPDATE stock SET left = left - :n WHERE item = :item", "params": {"n": 1, "item": "cup"}},
            {"sql": "INSERT INTO sales (item, price) VALUES ($1, $2)", "rows": [["cup", 4.5], ["cup", 4.0]]},
        ],
    },
)
async def execute(job: Job, payload: SqlExecute) -> SqlExecuted:
    """Run SQL statements in one transaction, applied once however often the job is started.

    The connection must say `mode=rw`. A marker in its table `tandem_applied` is written in the same transaction; a
    later attempt finds it and gives the same row counts, with `applied: before`.
    """
    total = sum(1 if one.rows is None else len(one.rows) for one in payload.statements)

    async def work(transaction: Transaction) -> list[int]:
        rowcounts, done = [], 0
        for statement in payload.statements:
            count = 0
            for params in [statement.params] if statement.rows is None else statement.rows:
                count += await transaction.execute(statement.sql, params)
                done += 1
                if done % REPORT_EVERY == 0:
                    await job.progress(done, total)
            rowcounts.append(count)
        return rowcounts

    connection = job.resources.sql.raw(payload.connection)
    applied = await apply_once(connection, job.id, "sql.execute", work, timeout=_timeout(job))
    await job.progress(total, total)
    return {"rowcounts": applied.result, "applied": applied.when}


def _timeout(job: Job) -> float:
    return max(0.0, job.deadline - time.time()) + GRACE


def _too_large(what: str) -> TaskError:
    return TaskError("too_large", what, retryable=False)
