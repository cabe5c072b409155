"""Work on a database that is applied once, however often its job is started.

A marker, the job's id and a step of it, is written into `tandem_applied` in the transaction of the
work itself. A worker that dies after the commit and before it could say so leaves the marker
behind; the next attempt finds it and gives the result that is kept in it. Two attempts at the same
time (one of them lost its lease and does not know) wait for each other at the marker. The table is
made when it is missing; its rows may be deleted once their jobs are final: `DELETE FROM
tandem_applied WHERE applied_at < …`.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple

import msgspec

from tandem_worker.connectors.sql.connections import SqlConnection, Transaction
from tandem_worker.connectors.sql.placeholders import Dialect
from tandem_worker.errors import TaskError

_TABLE = """CREATE TABLE tandem_applied (
    job text NOT NULL, step text NOT NULL, result text,
    applied_at timestamp NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (job, step)
)"""
# The table by a name that holds whatever the work does to the search path.
_FIND: dict[Dialect, str] = {
    "postgresql": "SELECT relnamespace::regnamespace::text || '.tandem_applied' AS name"
    " FROM pg_class WHERE oid = to_regclass('tandem_applied')",
    "sqlite": "SELECT 'main.tandem_applied' AS name FROM main.sqlite_master"
    " WHERE type = 'table' AND name = 'tandem_applied'",
}


class Applied(NamedTuple):
    """What the work returned, and whether this call did it or an earlier one."""

    result: Any
    when: Literal["now", "before"]


async def apply_once(
    connection: SqlConnection,
    job: str,
    step: str,
    work: Callable[[Transaction], Awaitable[Any]],
    *,
    timeout: float,
) -> Applied:
    """Do `work` in a transaction of `connection`, unless this step of this job was done before.

    Its result must be JSON. `timeout` in seconds. Raises TaskError and whatever `work` raises; then
    nothing is applied.
    """
    key = {"job": job, "step": step}
    table = await _table(connection, timeout)
    async with connection.transaction(timeout=timeout) as transaction:
        marked = await transaction.execute(
            f"INSERT INTO {table} (job, step) VALUES (:job, :step) ON CONFLICT DO NOTHING",  # noqa: S608 - our own name
            key,
        )
        if not marked:
            sql = f"SELECT result FROM {table} WHERE job = :job AND step = :step"  # noqa: S608 - likewise
            row = await transaction.first(sql, key)
            return Applied(msgspec.json.decode((row or {}).get("result") or "null"), "before")
        result = await work(transaction)
        kept = await transaction.execute(
            f"UPDATE {table} SET result = :result WHERE job = :job AND step = :step",  # noqa: S608 - likewise
            {**key, "result": msgspec.json.encode(result).decode()},
        )
        if not kept:
            raise TaskError(
                "sql_error", "the statements removed the marker of their own job", retryable=False
            )
    return Applied(result, "now")


async def _table(connection: SqlConnection, timeout: float) -> str:
    """The full name of the marker table, which is made if it is missing."""
    find = _FIND[connection.dialect]
    async with connection.transaction(timeout=timeout) as transaction:
        found = await transaction.first(find)
    if found is None:
        try:
            # In a transaction of its own: others that find it missing do not wait for the work of
            # this one.
            async with connection.transaction(timeout=timeout) as transaction:
                await transaction.execute(_TABLE)
        except TaskError as error:
            async with connection.transaction(timeout=timeout) as transaction:
                found = await transaction.first(find)
            if found is None:  # no other has made it meanwhile
                message = f"the table tandem_applied is missing and cannot be made: {error.message}"
                raise TaskError(error.type, message, error.retryable) from None
        async with connection.transaction(timeout=timeout) as transaction:
            found = await transaction.first(find)
    if found is None:
        raise TaskError(
            "sql_error", "the table tandem_applied is made and not found", retryable=False
        )
    return str(found["name"])
