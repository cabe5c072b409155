"""Work on a database that is applied once, however often its job is started.

A marker with the job's id and step is written to `tandem_applied` in the transaction of the work
itself. If a worker dies after the commit and before it could report, the next attempt finds the
marker and returns the result stored in it. Two attempts at the same time (one has lost its lease
without noticing) wait for each other at the marker. The table is created if it is missing; rows may
be deleted once their jobs are final: `DELETE FROM tandem_applied WHERE applied_at < …`.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple

import msgspec

from tandem_worker.connectors.sql.connections import SqlConnection, SqlTransaction
from tandem_worker.connectors.sql.statements.placeholders import Dialect
from tandem_worker.errors import Permanent, TaskError

_TABLE = """CREATE TABLE tandem_applied (
    job text NOT NULL, step text NOT NULL, result text,
    applied_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (job, step)
)"""
# The table's full name stays valid if the work changes the search path.
_FIND: dict[Dialect, str] = {
    "postgresql": "SELECT relnamespace::regnamespace::text || '.tandem_applied' AS name"
    " FROM pg_class WHERE oid = to_regclass('tandem_applied')",
    "sqlite": "SELECT 'main.tandem_applied' AS name FROM main.sqlite_master"
    " WHERE type = 'table' AND name = 'tandem_applied'",
}


class Applied(NamedTuple):
    """The result of the work, done by this call (now) or an earlier one (before)."""

    result: Any
    when: Literal["now", "before"]


async def apply_once(
    connection: SqlConnection,
    job: str,
    step: str,
    work: Callable[[SqlTransaction], Awaitable[Any]],
    *,
    timeout: float,
) -> Applied:
    """Do `work` in a transaction of `connection`, unless this step of this job was done before.

    The result must be JSON; `timeout` is in seconds. Raises TaskError, and what `work` raises; then
    nothing is applied.
    """
    key = {"job": job, "step": step}
    table = await _table(connection, timeout)
    async with connection.transaction(timeout=timeout) as transaction:
        marked = await transaction.execute(
            f"INSERT INTO {table} (job, step) VALUES (:job, :step) ON CONFLICT DO NOTHING",  # noqa: S608 - the table's name is ours
            key,
        )
        if not marked:
            sql = f"SELECT result FROM {table} WHERE job = :job AND step = :step"  # noqa: S608 - the table's name is ours
            row = await transaction.first(sql, key)
            return Applied(msgspec.json.decode((row or {}).get("result") or "null"), "before")
        result = await work(transaction)
        kept = await transaction.execute(
            f"UPDATE {table} SET result = :result WHERE job = :job AND step = :step",  # noqa: S608 - the table's name is ours
            {**key, "result": msgspec.json.encode(result).decode()},
        )
        if not kept:
            raise Permanent("sql_error", "the statements deleted their own job's marker")
    return Applied(result, "now")


async def _table(connection: SqlConnection, timeout: float) -> str:
    """The full name of the marker table, which is created if it is missing."""
    table = await _find_table(connection, timeout)
    if table is not None:
        return table
    failure: TaskError = Permanent("sql_error", "it is not found afterwards")
    try:
        # In a separate transaction: other jobs that need the table do not wait for this job's work.
        async with connection.transaction(timeout=timeout) as transaction:
            await transaction.execute(_TABLE)
    except TaskError as error:
        failure = error
    table = await _find_table(connection, timeout)
    if table is None:  # nor has another job created it meanwhile
        message = f"the table tandem_applied cannot be created: {failure.message}"
        raise TaskError(failure.type, message, failure.retryable)
    return table


async def _find_table(connection: SqlConnection, timeout: float) -> str | None:
    async with connection.transaction(timeout=timeout) as transaction:
        found = await transaction.first(_FIND[connection.dialect])
    return None if found is None else str(found["name"])
