"""SQL tasks: `sql.query`, `sql.execute`, `sql.export`, `sql.import`."""

from typing import Any, Literal, NotRequired

import msgspec
from pydantic import Field
from typing_extensions import TypedDict

from tandem_worker.connectors.sql import rows
from tandem_worker.errors import TaskError
from tandem_worker.jobs.deadline import call_timeout
from tandem_worker.jobs.job import Job
from tandem_worker.task import task
from tandem_worker.tasks.sql.payloads import (
    REPORT_EVERY,
    MaxBytes,
    MaxRows,
    SqlColumn,
    SqlSource,
)

MAX_RESULT_ROWS = 1000
MAX_RESULT_BYTES = 16 << 20


class SqlQuery(SqlSource):
    """What `sql.query` takes."""

    max_rows: MaxRows = None
    max_bytes: MaxBytes = None
    as_: Literal["output", "result"] = Field(
        "output", alias="as", description="rows as output items, or in the result (at most 1,000)"
    )


class SqlResult(TypedDict):
    """What `sql.query` gives; `rows` only with `as: result`."""

    row_count: int
    columns: list[SqlColumn]
    rows: NotRequired[list[dict[str, Any]]]


@task(
    "sql.query",
    timeout="10m",
    example={
        "connection": "analytics",
        "sql": "SELECT * FROM orders WHERE city = :city",
        "params": {"city": "Oslo"},
    },
)
async def query(job: Job, payload: SqlQuery) -> SqlResult:
    """Run one SQL query and stream its rows.

    Rows are objects; decimals are strings, times RFC 3339, intervals ISO 8601 durations, bytes
    base64.
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
    async with connection.query(text, params, timeout=call_timeout(job)) as result:
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


def _too_large(what: str) -> TaskError:
    return TaskError("too_large", what, retryable=False)
