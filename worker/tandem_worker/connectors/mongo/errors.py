"""What MongoDB's failures mean: which types they have for clients, and which are worth another attempt."""

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

from tandem_worker.errors import TaskError

_AUTHENTICATION = 18  # the server's code for a wrong user or password
# Codes after which the same command may well succeed: elections, shutdowns, lost hosts, conflicts,
# locks.
_PASSING = frozenset(
    {6, 7, 24, 89, 91, 112, 134, 189, 246, 251, 262, 9001, 10107, 11600, 11602, 13435, 13436}
)
_PASSING_LABELS = (
    "TransientTransactionError",
    "UnknownTransactionCommitResult",
    "RetryableWriteError",
)


def explained(error: Exception, connection: str) -> TaskError:
    """What a failure of the driver is to clients; `connection` is the name in the settings."""
    if isinstance(error, BSONError | OverflowError | DocumentTooLarge):
        return TaskError(
            "invalid_document", f"a document cannot be stored: {error}", retryable=False
        )
    if isinstance(error, ExecutionTimeout | NetworkTimeout):
        return late()
    if isinstance(error, WaitQueueTimeoutError):
        return TaskError(
            "mongo_connection", f"all connections of {connection!r} are busy", retryable=True
        )
    if isinstance(error, ConnectionFailure):
        # The driver's words name hosts and ports.
        return unanswered(connection)
    if isinstance(error, ConfigurationError):
        return TaskError(
            "mongo_connection", f"the settings of {connection!r} do not fit", retryable=False
        )
    if isinstance(error, OperationFailure):
        if error.code == _AUTHENTICATION:
            message = f"the server of {connection!r} refuses the user of the settings"
            return TaskError("mongo_connection", message, retryable=False)
        words = _words(error)
        if isinstance(error, DuplicateKeyError):
            return TaskError("duplicate_key", words, retryable=False)
        passing = error.code in _PASSING or any(map(error.has_error_label, _PASSING_LABELS))
        return TaskError("mongo_error", words, retryable=passing)
    return TaskError("mongo_error", f"the driver failed: {type(error).__name__}", retryable=False)


def _words(error: OperationFailure) -> str:
    """The server's own sentence, without the reply that the driver appends to it."""
    details = error.details or {}
    for one in [*details.get("writeErrors", ()), *details.get("writeConcernErrors", ()), details]:
        if one.get("errmsg"):
            return str(one["errmsg"])
    return str(error).partition(", full error:")[0]


def late() -> TaskError:
    """The server ended a command, since it took longer than the job may."""
    return TaskError("timeout", "the server took longer than the job may", retryable=True)


def unanswered(connection: str) -> TaskError:
    return TaskError(
        "mongo_connection", f"the server of {connection!r} does not answer", retryable=True
    )
