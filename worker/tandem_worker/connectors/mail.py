"""Mail, through the server of TANDEM_SMTP_URL.

    smtp://user:password@host:587     TLS by STARTTLS, and no mail without it
    smtps://user:password@host        TLS from the start, port 465
    ?tls=none                         no TLS: for a server on this machine or network
    ?from=orders@example.org          the sender of mails that name none

Failures are TaskErrors: `mail_connection` (no server in the settings, none that answers, one that
refuses the user or has no TLS) and `mail_refused` (the server refuses the sender, every recipient,
or the message). Answers of 4xx and lost connections are retried; a server that has taken the
message and could not say so then gets it again, with the same Message-ID.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import aiosmtplib
from aiosmtplib import errors

from tandem_shared.errors import Misconfigured
from tandem_shared.settings import Settings
from tandem_worker.errors import Permanent, TaskError

CONNECTIONS = 10  # to the server at once
TIMEOUT = 30.0  # seconds, of each of its answers
QUIT_TIMEOUT = 2.0
_PORTS = {"smtp": 587, "smtps": 465}


class Refusal(NamedTuple):
    """A recipient that the server did not take, with its answer."""

    address: str
    code: int
    message: str


class MailServer(NamedTuple):
    """What TANDEM_SMTP_URL says."""

    host: str
    port: int
    user: str | None
    password: str | None
    tls: str  # "start", "whole", "none"
    sender: str | None


class Mailer:
    """The worker's way to the mail server; a connection is made for each message."""

    def __init__(self, server: MailServer | None) -> None:
        self._server = server
        self._free = asyncio.Semaphore(CONNECTIONS)

    @property
    def sender(self) -> str | None:
        """Who sends mails that do not say."""
        return None if self._server is None else self._server.sender

    async def send(self, sender: str, recipients: Sequence[str], message: bytes) -> list[Refusal]:
        """Hand the message over; the recipients that the server refused, unless it refused all. Raises TaskError."""
        server = self._server
        if server is None:
            raise Permanent("mail_connection", "the worker's settings name no mail server")
        async with self._free:
            try:
                client = aiosmtplib.SMTP(
                    hostname=server.host,
                    port=server.port,
                    username=server.user,
                    password=server.password,
                    timeout=TIMEOUT,
                    use_tls=server.tls == "whole",
                    start_tls=server.tls == "start",
                    tls_context=None
                    if server.tls == "none"
                    else await asyncio.to_thread(ssl.create_default_context),
                )
                try:
                    await client.connect()
                    refused, _ = await client.sendmail(sender, recipients, message)
                    # The message is taken: how the server says good-bye is no reason to send it
                    # again.
                    with suppress(errors.SMTPException, OSError):
                        await client.quit(timeout=QUIT_TIMEOUT)
                finally:
                    client.close()
            except (errors.SMTPException, OSError, ValueError) as error:
                raise _explained(error) from None
        return [
            Refusal(address, answer.code, answer.message) for address, answer in refused.items()
        ]


@asynccontextmanager
async def open_mail(settings: Settings) -> AsyncIterator[Mailer]:
    """The way to the mail server of the settings, if any. Raises Misconfigured for a URL that is none."""
    yield Mailer(_server(settings.smtp_url) if settings.smtp_url else None)


def _server(url: str) -> MailServer:
    parts = urlsplit(url)
    try:
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        port = 0
    options = dict(parse_qsl(parts.query))
    tls = options.pop("tls", "start")
    sender = options.pop("from", None)
    if (
        not port
        or not parts.hostname
        or options
        or tls not in ("start", "none")
        or parts.path not in ("", "/")
    ):
        raise Misconfigured(
            "TANDEM_SMTP_URL: give smtp://user:password@host:587 or smtps://…, with tls=none or from=… after a ?"
        )
    return MailServer(
        parts.hostname,
        port,
        None if parts.username is None else unquote(parts.username),
        None if parts.password is None else unquote(parts.password),
        "whole" if parts.scheme == "smtps" else tls,
        sender,
    )


def _explained(error: Exception) -> TaskError:
    if isinstance(error, errors.SMTPRecipientsRefused):
        first = error.recipients[0]
        passing = any(400 <= one.code < 500 for one in error.recipients)
        return TaskError(
            "mail_refused",
            f"no recipient was accepted: {first.code} {first.message}",
            retryable=passing,
        )
    if isinstance(error, errors.SMTPAuthenticationError):
        message = "the mail server refuses the user of the settings"
        return TaskError("mail_connection", message, retryable=400 <= error.code < 500)
    if isinstance(error, errors.SMTPConnectError | errors.SMTPHeloError):
        return _unanswered(error)
    if isinstance(error, errors.SMTPResponseException):
        message = f"the mail server answered {error.code} {error.message}"
        return TaskError("mail_refused", message, retryable=400 <= error.code < 500)
    if isinstance(error, errors.SMTPServerDisconnected | errors.SMTPTimeoutError | OSError):
        return _unanswered(error)
    message = "the mail server has no TLS, or no login, as the settings want it"
    return Permanent("mail_connection", message)


def _unanswered(error: BaseException) -> TaskError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Permanent("mail_connection", "the mail server's certificate is not trusted")
        cause = cause.__cause__
    return TaskError(
        "mail_connection", "the mail server does not answer, or broke off", retryable=True
    )
