"""`email.send`."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from email import policy
from email.charset import QP, Charset
from email.encoders import encode_base64
from email.message import Message
from email.mime.base import MIMEBase
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import format_datetime
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from tandem_shared.files.names import OCTET_STREAM
from tandem_shared.jobs.ids import id_time
from tandem_worker.connectors.mail_headers import (
    CONTROL,
    MAILBOX_PATTERN,
    NOT_A_MAILBOX,
    Mailbox,
    attachment_disposition,
    encoded_mailboxes,
    encoded_text,
    parse_mailbox,
)
from tandem_worker.errors import Permanent
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.task import task
from tandem_worker.tasks.payload import Payload

MAX_BYTES = 25 << 20  # of all attachments: they are held in memory, and few servers accept more
MAX_RECIPIENTS = 100  # in to, cc and bcc together

# Every mail travels in seven bits, with CRLF: not every server accepts more.
_POLICY = policy.compat32.clone(linesep="\r\n", cte_type="7bit")
_UTF8 = Charset("utf-8")
_UTF8.body_encoding = QP


def _check(text: str) -> str:
    parse_mailbox(text)
    return text


MailboxText = Annotated[
    str,
    Field(
        max_length=500,
        pattern=MAILBOX_PATTERN,
        json_schema_extra={"errorMessage": f"is {NOT_A_MAILBOX}"},
        description="a@example.org or Name <a@example.org>",
    ),
    AfterValidator(_check),
]
Mailboxes = (
    Annotated[list[MailboxText], Field(min_length=1, max_length=MAX_RECIPIENTS)] | MailboxText
)


class Mail(Payload):
    """The payload of `email.send`."""

    to: Mailboxes
    cc: Mailboxes | None = None
    bcc: Annotated[
        Mailboxes | None, Field(description="receive the mail without being named in it")
    ] = None
    subject: Annotated[str, Field(max_length=900, pattern=rf"^[^{CONTROL}]*$")]
    text: str | None = None
    html: Annotated[
        str | None, Field(description="shown instead of the text by mail readers that can")
    ] = None
    attachments: Annotated[
        list[FileRef] | None, Field(max_length=100, description="at most 25 MiB together")
    ] = None
    from_: Annotated[
        MailboxText | None,
        Field(alias="from", description="default: the sender in the worker's settings"),
    ] = None
    reply_to: MailboxText | None = None


class MailRefusal(TypedDict):
    """A recipient that the server refused, with its answer."""

    address: str
    code: int
    message: str


class MailResult(TypedDict):
    """The Message-ID, the same in all attempts, and the accepted and refused recipients."""

    message_id: str
    accepted: list[str]
    refused: list[MailRefusal]


@task(
    "email.send",
    example={
        "to": ["Ada <ada@example.org>"],
        "subject": "Your invoice",
        "text": "It is attached.",
        "attachments": [],
    },
)
async def send(job: Job, payload: Mail) -> MailResult:
    """Send a mail, with attachments from the file store.

    Its Message-ID is made from the job's id, so that a mail that is sent twice is recognized as the
    same one.
    """
    mailer = job.resources.mail
    sender = payload.from_ or mailer.sender
    if sender is None:
        message = "neither the mail nor the worker's settings name a sender: set `from`"
        raise Permanent("mail_refused", message)
    mailboxes = _mailboxes(payload.to, payload.cc, payload.bcc)
    recipients = list(dict.fromkeys(mailbox.address for mailbox in mailboxes))
    if len(recipients) > MAX_RECIPIENTS:
        raise Permanent("too_large", f"a mail has at most {MAX_RECIPIENTS} recipients")
    author = parse_mailbox(sender)
    attachments = [part async for part in _attachments(job, payload.attachments or ())]
    mail = _message(job, payload, author, attachments)
    # In a thread: it encodes many MiB as base64.
    data = await asyncio.to_thread(mail.as_bytes, policy=_POLICY)
    await job.progress(0, 1, "sending")
    refusals = await mailer.send(author.address, recipients, data)
    await job.progress(1, 1)
    refused: list[MailRefusal] = [
        {"address": refusal.address, "code": refusal.code, "message": refusal.message}
        for refusal in refusals
    ]
    addresses = {refusal.address for refusal in refusals}
    return {
        "message_id": str(mail["Message-ID"]),
        "accepted": [address for address in recipients if address not in addresses],
        "refused": refused,
    }


def _mailboxes(*fields: Any) -> list[Mailbox]:
    """The mailboxes of fields that hold a list, one mailbox or None."""
    lists = ([field] if isinstance(field, str) else field or [] for field in fields)
    return [parse_mailbox(text) for texts in lists for text in texts]


def _message(
    job: Job, payload: Mail, author: Mailbox, attachments: Sequence[Message]
) -> "Message[str, str]":
    message = _content(payload)
    if attachments:
        mixed = MIMEMultipart("mixed", None, [message, *attachments])
        message = mixed
    message["From"] = author.encoded()
    message["To"] = encoded_mailboxes(_mailboxes(payload.to))
    if payload.cc:
        message["Cc"] = encoded_mailboxes(_mailboxes(payload.cc))
    if payload.reply_to:
        message["Reply-To"] = parse_mailbox(payload.reply_to).encoded()
    message["Subject"] = encoded_text(payload.subject)
    # The job's creation time: another attempt makes the same mail.
    created = datetime.fromtimestamp(int(id_time(job.id) or job.stamp / 1e6), UTC)
    message["Date"] = format_datetime(created)
    message["Message-ID"] = f"<{job.id}@{author.domain}>"
    return message


def _content(payload: Mail) -> "Message[str, str]":
    """The text, the HTML, or both as alternatives."""
    parts = [
        MIMEText(text, subtype, _UTF8)  # type: ignore[arg-type]  # the stub knows names only
        for text, subtype in ((payload.text, "plain"), (payload.html, "html"))
        if text is not None
    ]
    if not parts:
        return MIMEText("", "plain", _UTF8)  # type: ignore[arg-type]  # the stub knows names only
    return parts[0] if len(parts) == 1 else MIMEMultipart("alternative", None, parts)


async def _attachments(
    job: Job, references: Sequence[FileRef]
) -> AsyncIterator["Message[str, str]"]:
    """The files as parts. Raises Permanent `too_large` above MAX_BYTES together."""
    left = MAX_BYTES
    for reference in references:
        file = await job.files.stat(reference)
        if (file.size or 0) > left:
            raise Permanent("too_large", f"the attachments have more than {MAX_BYTES} bytes")
        left -= file.size or 0
        data = await job.files.read(file, MAX_BYTES)
        yield await asyncio.to_thread(_attachment, file, data)


def _attachment(file: FileRef, data: bytes) -> "Message[str, str]":
    content_type = (file.content_type or OCTET_STREAM).partition(";")[0].strip()
    plain = re.fullmatch(r"(?!multipart/|message/)[a-z0-9.+-]+/[a-z0-9.+-]+", content_type)
    part = MIMEBase(*(content_type if plain else OCTET_STREAM).split("/", 1))
    part.set_payload(data)
    encode_base64(part)
    name = re.sub(rf"[{CONTROL}\"\\/]", "_", (file.name or "file").rpartition("/")[2]) or "file"
    part["Content-Disposition"] = attachment_disposition(name)
    return part
