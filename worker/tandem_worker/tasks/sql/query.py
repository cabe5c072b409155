"""`sql.query`."""

from typing import Any, Literal, NotRequired, cast

import msgspec
from pydantic import Field
from typing_extensions import TypedDict

from tandem_worker.connectors.sql.statements.rows import to_json, too_many
from tandem_worker.errors import Permanent
from tandem_worker.jobs.deadline import call_timeout
from tandem_worker.jobs.job import Job
from tandem_worker.task import task
from tandem_worker.tasks.sql.payloads import (
    REPORT_ROWS,
    MaxBytes,
    MaxRows,
    SqlColumn,
    SqlSource,
    column_list,
)

MAX_RESULT_ROWS = 1000
MAX_RESULT_BYTES = 16 << 20


class SqlQuery(SqlSource):
    """The payload of `sql.query`."""

    max_rows: MaxRows = None
    max_bytes: MaxBytes = None
    as_: Literal["output", "result"] = Field(
        "output", alias="as", description="stream rows as output, or return up to 1,000 as result"
    )


class SqlResult(TypedDict):
    """The result of `sql.query`; `rows` only with `as: result`."""

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
    connection, sql, params = payload.resolve(job)
    max_rows, max_bytes = payload.max_rows, payload.max_bytes
    if payload.as_ == "result":
        max_rows = min(MAX_RESULT_ROWS, max_rows or MAX_RESULT_ROWS)
        max_bytes = min(MAX_RESULT_BYTES, max_bytes or MAX_RESULT_BYTES)
    returned: list[msgspec.Raw] = []
    size = count = 0
    async with connection.query(sql, params, timeout=call_timeout(job)) as result:
        async for chunk in result:
            for row in chunk:
                if count == max_rows:
                    raise too_many(max_rows)
                count += 1
                item = to_json(row)
                size += len(bytes(item))
                if max_bytes is not None and size > max_bytes:
                    message = f"the rows of the result have more than {max_bytes} bytes"
                    raise Permanent("too_large", message)
                if payload.as_ == "output":
                    await job.emit(item)
                else:
                    returned.append(item)
                if count % REPORT_ROWS == 0:
                    await job.progress(count)
        columns = column_list(result.columns)
    await job.progress(count, count)
    done: SqlResult = {"row_count": count, "columns": columns}
    if payload.as_ == "result":
        # Joined and not decoded: JSON of the database may have numbers that Python would round.
        return cast("SqlResult", msgspec.Raw(msgspec.json.encode({**done, "rows": returned})))
    return done
