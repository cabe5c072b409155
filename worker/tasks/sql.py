"""SQL tasks: `sql.query`."""

import time
from typing import Annotated, Any, Literal, NotRequired

import msgspec
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from worker import rows
from worker.errors import TaskError
from worker.job import Job
from worker.task import task

MAX_RESULT_ROWS = 1000
MAX_RESULT_BYTES = 16 << 20
REPORT_EVERY = 5000  # rows
GRACE = 1.0  # seconds after the job's deadline: its own timeout comes first


class SqlQuery(BaseModel):
    """What `sql.query` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    connection: Annotated[str, Field(min_length=1, max_length=128, description="a name from the worker's settings")]
    sql: Annotated[str, Field(pattern=r"^[^\u0000]*[^\s\u0000][^\u0000]*$", description="one statement")]
    params: list[Any] | dict[str, Any] | None = Field(
        None, description="a list for the database's own placeholders (?, $1), an object for :name"
    )
    max_rows: Annotated[int, Field(ge=1)] | None = Field(None, description="more rows fail the job as too_large")
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
    connection = job.sql(payload.connection)
    kept: list[msgspec.Raw] = []
    kept_bytes = count = 0
    limit = MAX_RESULT_ROWS if payload.as_ == "result" else None
    if payload.max_rows is not None:
        limit = min(payload.max_rows, limit or payload.max_rows)
    timeout = max(0.0, job.deadline - time.time()) + GRACE
    async with connection.query(payload.sql, payload.params, timeout=timeout) as result:
        async for portion in result:
            for row in portion:
                if count == limit:
                    raise _too_large(f"the result has more than {limit} rows")
                count += 1
                item = rows.to_json(row)
                if payload.as_ == "output":
                    await job.emit(item)
                else:
                    kept.append(item)
                    kept_bytes += len(bytes(item))
                    if kept_bytes > MAX_RESULT_BYTES:
                        raise _too_large(f"the rows of the result have more than {MAX_RESULT_BYTES} bytes")
                if count % REPORT_EVERY == 0:
                    await job.progress(count)
        columns: list[SqlColumn] = [{"name": one.name, "type": one.type} for one in result.columns]
    await job.progress(count, count)
    done: SqlResult = {"row_count": count, "columns": columns}
    if payload.as_ == "result":
        done["rows"] = [msgspec.json.decode(item) for item in kept]
    return done


def _too_large(what: str) -> TaskError:
    return TaskError("too_large", what, retryable=False)
