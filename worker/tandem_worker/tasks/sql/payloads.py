"""What the payloads of the SQL tasks share."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from tandem_worker.connectors.sql.connections import SqlConnection
from tandem_worker.connectors.sql.statements.rows import Column
from tandem_worker.jobs.job import Job
from tandem_worker.tasks.payload import ConnectionName, Payload

REPORT_ROWS = 5000  # rows between two progress reports

Sql = Annotated[
    str, Field(pattern=r"^[^\u0000]*[^\s\u0000][^\u0000]*$", description="one statement")
]
SqlParams = Annotated[
    list[Any] | dict[str, Any] | None,
    Field(description="a list for the database's own placeholders (?, $1), an object for :name"),
]
MaxRows = Annotated[
    Annotated[int, Field(ge=1)] | None,
    Field(description="a result with more rows fails the job as too_large"),
]
MaxBytes = Annotated[
    Annotated[int, Field(ge=1)] | None,
    Field(description="more bytes of output, or of the file, fail the job as too_large"),
]


class SqlSource(Payload):
    """One query: `sql` for a `connection`, or the name of a `query` that the operator declared."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {
                    "required": ["connection", "sql"],
                    "properties": {
                        "connection": {"type": "string"},
                        "sql": {"type": "string"},
                        "query": {"type": "null"},
                    },
                },
                {
                    "required": ["query"],
                    "properties": {"query": {"type": "string"}, "sql": {"type": "null"}},
                },
            ]
        },
    )

    exact_numbers: ClassVar[bool] = True  # params reach the database with the digits they have

    connection: ConnectionName | None = Field(None, description="optional with `query`")
    sql: Sql | None = None
    query: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        None, description="the name of a query in the worker's settings"
    )
    params: SqlParams = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.sql is None) == (self.query is None):
            raise ValueError("give either sql or query")
        if self.sql is not None and self.connection is None:
            raise ValueError("sql needs a connection")
        return self

    def resolve(self, job: Job) -> tuple[SqlConnection, str, list[Any] | dict[str, Any] | None]:
        """The connection, the SQL and its params. Raises TaskError."""
        known = job.resources.sql
        if self.query is None:
            return known.raw(self.connection or ""), self.sql or "", self.params
        query = known.named(self.query, self.connection)
        return known(query.connection), query.sql, query.check(self.params)


class SqlColumn(TypedDict):
    """A column and the database's name for its type."""

    name: str
    type: str


def column_list(columns: list[Column]) -> list[SqlColumn]:
    """The columns as a job's result lists them."""
    return [{"name": column.name, "type": column.type} for column in columns]
