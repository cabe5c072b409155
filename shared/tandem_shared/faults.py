"""Why a server cannot be reached, in words without addresses and passwords."""

import errno
import re
import socket
import ssl
from collections.abc import Iterator

_WORDS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "the connection was reset",
    errno.ENOENT: "there is no such socket",
    errno.EACCES: "permission denied",
    errno.ENETUNREACH: "the network is unreachable",
    errno.EHOSTUNREACH: "the host is unreachable",
}
_NUMBER = re.compile(r"(?:Errno |os error |Error )([0-9]{1,4})\b")


def reason_of(error: BaseException) -> str:
    """The reason of a failed connection, else the name of the error's class."""
    chain = list(_chain(error))
    return next(filter(None, map(_reason, chain)), None) or type(error).__name__


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, innermost first."""
    found: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in found:
        found.append(at)
        at = at.__cause__ or at.__context__
    return reversed(found)


def _reason(error: BaseException) -> str | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message or error.reason}"
    if isinstance(error, ssl.SSLError):
        return "TLS fails; the server may expect plain connections"
    if isinstance(error, socket.gaierror):
        return "the host name is unknown"
    if isinstance(error, OSError) and error.errno in _WORDS:
        return _WORDS[error.errno]
    text = str(error)
    if "onnection closed by server" in text:
        return "the server closed the connection; it may expect TLS"
    if isinstance(error, OSError) and (number := _NUMBER.search(text)):
        return _WORDS.get(int(number[1]))
    return None
