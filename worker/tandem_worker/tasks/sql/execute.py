"""`sql.execute`."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from tandem_worker.connectors.sql.apply_once import apply_once
from tandem_worker.connectors.sql.connections import SqlTransaction
from tandem_worker.jobs.deadline import call_timeout
from tandem_worker.jobs.job import Job
from tandem_worker.task import task
from tandem_worker.tasks.payload import ConnectionName, Payload
from tandem_worker.tasks.sql.payloads import REPORT_ROWS, Sql, SqlParams


class SqlStatement(Payload):
    """One statement, run once with `params` or once for each of `rows`."""

    model_config = ConfigDict(json_schema_extra={"not": {"required": ["params", "rows"]}})

    sql: Sql
    params: SqlParams = None
    rows: (
        Annotated[list[list[Any] | dict[str, Any]], Field(description="the params of each run")]
        | None
    ) = None

    @model_validator(mode="after")
    def _either(self) -> Self:
        if {"params", "rows"} <= self.model_fields_set:
            raise ValueError("give either params or rows")
        return self


class SqlExecute(Payload):
    """The payload of `sql.execute`."""

    exact_numbers: ClassVar[bool] = True  # params reach the database with the digits they have

    connection: ConnectionName
    statements: list[SqlStatement] = Field(min_length=1, max_length=10_000)


class SqlExecuted(TypedDict):
    """Rows written (or returned) by each statement, now or before by an earlier attempt."""

    rowcounts: list[int]
    applied: Literal["now", "before"]


@task(
    "sql.execute",
    timeout="10m",
    example={
        "connection": "shop",
        "statements": [
            {
                "sql": "UPDATE stock SET left = left - :n WHERE item = :item",
                "params": {"n": 1, "item": "cup"},
            },
            {
                "sql": "INSERT INTO sales (item, price) VALUES ($1, $2)",
                "rows": [["cup", 4.5], ["cup", 4.0]],
            },
        ],
    },
)
async def execute(job: Job, payload: SqlExecute) -> SqlExecuted:
    """Run SQL statements in one transaction, applied once however often the job is started.

    The connection needs `mode=rw`. A marker is written to its table `tandem_applied` in the same
    transaction; a later attempt finds it and returns the same row counts, with `applied: before`.
    """
    total = sum(
        1 if statement.rows is None else len(statement.rows) for statement in payload.statements
    )

    async def work(transaction: SqlTransaction) -> list[int]:
        rowcounts, done = [], 0
        for statement in payload.statements:
            count = 0
            for params in [statement.params] if statement.rows is None else statement.rows:
                count += await transaction.execute(statement.sql, params)
                done += 1
                if done % REPORT_ROWS == 0:
                    await job.progress(done, total)
            rowcounts.append(count)
        return rowcounts

    connection = job.resources.sql.raw(payload.connection)
    applied = await apply_once(connection, job.id, "sql.execute", work, timeout=call_timeout(job))
    await job.progress(total, total)
    return {"rowcounts": applied.result, "applied": applied.when}
