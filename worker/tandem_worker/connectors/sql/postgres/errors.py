"""PostgreSQL's failures as TaskErrors."""

import re
import ssl

import asyncpg

from tandem_worker.connectors.sql.postgres.literals import misfit
from tandem_worker.errors import Permanent, TaskError

# How the server names the parameter it cannot read; its message would quote the value.
_PARAMETER = re.compile(r"^(?:unnamed )?portal (?:.* )?parameter \$([0-9]+)", re.MULTILINE)
# SQLSTATE classes and codes.
_DATA_EXCEPTION = "22"
_BROKEN = ("08", "57P")  # connection, shutdown
_TRANSIENT = ("40", "53", "55P03")  # rollback (serialization, deadlock), resources, lock timeout


def unreachable(error: Exception, name: str) -> TaskError:
    """The error for a failed connection, without the driver's message: it may quote the URL."""
    final = isinstance(
        error,
        asyncpg.InvalidAuthorizationSpecificationError
        | asyncpg.InvalidCatalogNameError
        | asyncpg.ClientConfigurationError
        | ssl.SSLCertVerificationError
        | TypeError,
    ) or isinstance(error.__cause__, asyncpg.InvalidCatalogNameError)
    what = "rejects its settings" if final else "does not answer"
    message = f"the database of the connection {name!r} {what}"
    return TaskError("sql_connection", message, retryable=not final)


def task_error(error: Exception, name: str) -> TaskError:
    """The error for a failure: the server's own short message, retryable if transient."""
    if isinstance(error, asyncpg.QueryCanceledError):
        message = "the database cancelled the statement at its timeout"
        return TaskError("timeout", message, retryable=True)
    if refused := re.match(r"invalid input for query argument \$([0-9]+)", str(error)):
        return misfit(int(refused[1]))  # asyncpg's message quotes the value
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        parameter = _PARAMETER.search(getattr(error, "context", None) or "")
        if parameter and state.startswith(_DATA_EXCEPTION):
            return misfit(int(parameter[1]))
        if not state.startswith(_BROKEN):
            message = str(error.args[0]) if error.args else type(error).__name__
            return TaskError("sql_error", message, retryable=state.startswith(_TRANSIENT))
    elif isinstance(error, asyncpg.InterfaceError) and "closed" not in str(error):
        return Permanent("sql_error", str(error).partition("\n")[0])
    return TaskError("sql_connection", f"the connection {name!r} broke", retryable=True)
