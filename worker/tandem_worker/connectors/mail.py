"""Mail through the server in TANDEM_SMTP_URL.

    smtp://user:password@host:587     TLS by STARTTLS; without TLS no mail is sent
    smtps://user:password@host        TLS from the start, port 465
    ?tls=none                         no TLS, for a server on this machine or network
    ?from=orders@example.org          the sender of mails that do not name one

Failures are TaskErrors: `mail_connection` (the settings have no server, it does not answer, or it
rejects the user or TLS) and `mail_refused` (the server refuses the sender, every recipient, or the
message). Answers of 4xx and lost connections are retried; a server that accepted the message but
could not confirm it then receives it again, with the same Message-ID.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import aiosmtplib
from aiosmtplib import errors

from tandem_shared.errors import Misconfigured
from tandem_shared.settings import Settings
from tandem_worker.errors import Permanent, TaskError

MAX_CONNECTIONS = 10  # to the server at the same time
TIMEOUT_SECONDS = 30.0  # for each answer of the server
QUIT_TIMEOUT_SECONDS = 2.0
_DEFAULT_PORTS = {"smtp": 587, "smtps": 465}


class RefusedRecipient(NamedTuple):
    """A recipient that the server refused, with its answer."""

    address: str
    code: int
    message: str


class MailServer(NamedTuple):
    """The parts of TANDEM_SMTP_URL."""

    host: str
    port: int
    user: str | None
    password: str | None
    tls: Literal["starttls", "implicit", "none"]
    sender: str | None


class Mailer:
    """The worker's access to the mail server; each message uses a new connection."""

    def __init__(self, server: MailServer | None) -> None:
        self._server = server
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)

    @property
    def sender(self) -> str | None:
        """The sender of mails that do not name one."""
        return None if self._server is None else self._server.sender

    async def send(
        self, sender: str, recipients: Sequence[str], message: bytes
    ) -> list[RefusedRecipient]:
        """Send the message; returns the refused recipients. Raises TaskError if that is all."""
        server = self._server
        if server is None:
            raise Permanent(
                "mail_connection", "the worker's settings have no mail server (TANDEM_SMTP_URL)"
            )
        async with self._slots:
            try:
                tls_context = None
                if server.tls != "none":
                    tls_context = await asyncio.to_thread(ssl.create_default_context)
                client = aiosmtplib.SMTP(
                    hostname=server.host,
                    port=server.port,
                    username=server.user,
                    password=server.password,
                    timeout=TIMEOUT_SECONDS,
                    use_tls=server.tls == "implicit",
                    start_tls=server.tls == "starttls",
                    tls_context=tls_context,
                )
                try:
                    await client.connect()
                    refused, _ = await client.sendmail(sender, recipients, message)
                    # The server has accepted the message: a failed QUIT must not repeat it.
                    with suppress(errors.SMTPException, OSError):
                        await client.quit(timeout=QUIT_TIMEOUT_SECONDS)
                finally:
                    client.close()
            except (errors.SMTPException, OSError, ValueError) as error:
                raise _task_error(error) from None
        return [
            RefusedRecipient(address, answer.code, answer.message)
            for address, answer in refused.items()
        ]


@asynccontextmanager
async def open_mail(settings: Settings) -> AsyncIterator[Mailer]:
    """Access to the mail server in the settings. Raises Misconfigured for an invalid URL."""
    yield Mailer(_server(settings.smtp_url) if settings.smtp_url else None)


def _server(url: str) -> MailServer:
    parts = urlsplit(url)
    try:
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError:
        port = 0
    options = dict(parse_qsl(parts.query))
    tls = options.pop("tls", "start")
    sender = options.pop("from", None)
    rest = options or parts.path not in ("", "/")
    if not port or not parts.hostname or rest or tls not in ("start", "none"):
        raise Misconfigured(
            "TANDEM_SMTP_URL: give smtp://user:password@host:587 or smtps://…,"
            " optionally with ?tls=none or ?from=…"
        )
    return MailServer(
        parts.hostname,
        port,
        None if parts.username is None else unquote(parts.username),
        None if parts.password is None else unquote(parts.password),
        "implicit" if parts.scheme == "smtps" else "none" if tls == "none" else "starttls",
        sender,
    )


def _task_error(error: Exception) -> TaskError:
    match error:
        case errors.SMTPRecipientsRefused():
            first = error.recipients[0]
            transient = any(_is_transient(refused.code) for refused in error.recipients)
            message = f"no recipient was accepted: {first.code} {first.message}"
            return TaskError("mail_refused", message, retryable=transient)
        case errors.SMTPAuthenticationError():
            message = "the mail server rejects the user in the settings"
            return TaskError("mail_connection", message, retryable=_is_transient(error.code))
        case errors.SMTPConnectError() | errors.SMTPHeloError():
            return _no_answer(error)
        case errors.SMTPResponseException():
            message = f"the mail server answered {error.code} {error.message}"
            return TaskError("mail_refused", message, retryable=_is_transient(error.code))
        case errors.SMTPServerDisconnected() | errors.SMTPTimeoutError() | OSError():
            return _no_answer(error)
    message = "the mail server does not support the TLS or login in the settings"
    return Permanent("mail_connection", message)


def _is_transient(code: int) -> bool:
    return 400 <= code < 500


def _no_answer(error: BaseException) -> TaskError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Permanent("mail_connection", "the mail server's certificate is not trusted")
        cause = cause.__cause__
    message = "the mail server does not answer, or closed the connection"
    return TaskError("mail_connection", message, retryable=True)
