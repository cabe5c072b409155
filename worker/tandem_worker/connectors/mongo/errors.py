"""Failures of MongoDB as TaskErrors: their types for clients, and which are retryable."""

from bson.errors import BSONError
from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    NetworkTimeout,
    OperationFailure,
    WaitQueueTimeoutError,
)

from tandem_worker.errors import Permanent, TaskError

_AUTHENTICATION_FAILED = 18
# Server codes after which the same command may succeed: elections, shutdowns, lost hosts,
# conflicts, locks.
_TRANSIENT_CODES = frozenset(
    {6, 7, 24, 89, 91, 112, 134, 189, 246, 251, 262, 9001, 10107, 11600, 11602, 13435, 13436}
)
_TRANSIENT_LABELS = (
    "TransientTransactionError",
    "UnknownTransactionCommitResult",
    "RetryableWriteError",
)


def task_error(error: Exception, connection: str) -> TaskError:
    """The driver's error as clients see it; `connection` is its name in the settings."""
    match error:
        case BSONError() | OverflowError() | DocumentTooLarge():
            message = f"a document cannot be stored: {error}"
            return Permanent("invalid_document", message)
        case ExecutionTimeout() | NetworkTimeout():
            return late()
        case WaitQueueTimeoutError():
            message = f"all connections to {connection!r} are busy"
            return TaskError("mongo_connection", message, retryable=True)
        case ConnectionFailure():
            # Leave out the driver's message: it names hosts and ports.
            return no_answer(connection)
        case ConfigurationError():
            message = f"the server does not support the settings of {connection!r}"
            return Permanent("mongo_connection", message)
        case OperationFailure():
            return _operation_failed(error, connection)
    return Permanent("mongo_error", f"the driver failed: {type(error).__name__}")


def _operation_failed(error: OperationFailure, connection: str) -> TaskError:
    if error.code == _AUTHENTICATION_FAILED:
        message = f"the server rejects the user in the settings of {connection!r}"
        return Permanent("mongo_connection", message)
    message = _server_message(error)
    if isinstance(error, DuplicateKeyError):
        return Permanent("duplicate_key", message)
    transient = error.code in _TRANSIENT_CODES or any(map(error.has_error_label, _TRANSIENT_LABELS))
    return TaskError("mongo_error", message, retryable=transient)


def _server_message(error: OperationFailure) -> str:
    """The server's message, without the whole reply that the driver appends to it."""
    details = error.details or {}
    for part in [*details.get("writeErrors", ()), *details.get("writeConcernErrors", ()), details]:
        if part.get("errmsg"):
            return str(part["errmsg"])
    return str(error).partition(", full error:")[0]


def late() -> TaskError:
    """The job's deadline has passed, here or on the server."""
    return TaskError("timeout", "the server took longer than the job's timeout", retryable=True)


def no_answer(connection: str) -> TaskError:
    message = f"the server of {connection!r} does not answer"
    return TaskError("mongo_connection", message, retryable=True)
