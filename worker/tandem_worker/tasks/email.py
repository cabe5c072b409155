"""`email.send`."""

import asyncio
import re
import time
from datetime import UTC, datetime
from email import policy
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from tandem_shared.files.names import OCTET_STREAM
from tandem_shared.jobs.ids import id_time
from tandem_worker.errors import Permanent
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.task import task

MAX_BYTES = 25 << 20  # of all attachments: they are held in memory, and few servers accept more
MAX_RECIPIENTS = 100  # in to, cc and bcc together

# Reject every character that any mail reader may treat as a line break: header injection.
_CONTROL = r"\u0000-\u001f\u007f-\u009f\u2028\u2029"
_ADDRESS = r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?"
_MAILBOX = rf"^({_ADDRESS}|[^{_CONTROL}<>\"@,;\\]*<{_ADDRESS}>)$"
# Seven bits: not every server accepts eight.
_POLICY = policy.SMTP.clone(cte_type="7bit")


_NOT_AN_ADDRESS = "not a mail address: write a@example.org or Name <a@example.org>"


def mailbox(text: str) -> Address:
    """`orders@example.org` or `The orders <orders@example.org>`. Raises ValueError."""
    if re.fullmatch(_MAILBOX, text) is None:
        raise ValueError(_NOT_AN_ADDRESS)
    name, bracket, rest = text.rpartition("<")
    address = rest.removesuffix(">") if bracket else text
    try:
        return Address(display_name=name.strip(), addr_spec=address)
    except Exception:  # noqa: BLE001 - the parser raises errors of many kinds, such as IndexError
        raise ValueError(_NOT_AN_ADDRESS) from None


def _check(text: str) -> str:
    mailbox(text)
    return text


Mailbox = Annotated[
    str,
    Field(max_length=500, pattern=_MAILBOX, description="a@example.org or Name <a@example.org>"),
    AfterValidator(_check),
]
Mailboxes = Annotated[list[Mailbox], Field(min_length=1, max_length=MAX_RECIPIENTS)] | Mailbox


class Mail(BaseModel):
    """The payload of `email.send`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: Mailboxes
    cc: Mailboxes | None = None
    bcc: Annotated[
        Mailboxes | None, Field(description="receive the mail without being named in it")
    ] = None
    subject: Annotated[str, Field(max_length=900, pattern=rf"^[^{_CONTROL}]*$")]
    text: str | None = None
    html: Annotated[
        str | None, Field(description="shown instead of the text by mail readers that can")
    ] = None
    attachments: Annotated[
        list[FileRef] | None, Field(max_length=100, description="at most 25 MiB together")
    ] = None
    from_: Annotated[
        Mailbox | None,
        Field(alias="from", description="default: the sender in the worker's settings"),
    ] = None
    reply_to: Mailbox | None = None


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
    recipients = list(dict.fromkeys(mailbox.addr_spec for mailbox in mailboxes))
    if len(recipients) > MAX_RECIPIENTS:
        raise Permanent("too_large", f"a mail has at most {MAX_RECIPIENTS} recipients")
    author = mailbox(sender)
    mail = _message(job, payload, author)
    for reference in payload.attachments or ():
        await _attach(job, mail, reference)
    # In a thread: it encodes many MiB as base64.
    data = await asyncio.to_thread(mail.as_bytes)
    await job.progress(0, 1, "sending")
    refusals = await mailer.send(author.addr_spec, recipients, data)
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


def _mailboxes(*fields: Any) -> list[Address]:
    """The mailboxes of fields that hold a list, one mailbox or None."""
    lists = ([field] if isinstance(field, str) else field or [] for field in fields)
    return [mailbox(text) for texts in lists for text in texts]


def _message(job: Job, payload: Mail, author: Address) -> EmailMessage:
    message = EmailMessage(_POLICY)
    message["From"] = author
    message["To"] = _mailboxes(payload.to)
    if payload.cc:
        message["Cc"] = _mailboxes(payload.cc)
    if payload.reply_to:
        message["Reply-To"] = mailbox(payload.reply_to)
    message["Subject"] = payload.subject
    # The job's creation time: another attempt makes the same mail.
    created = datetime.fromtimestamp(int(id_time(job.id) or time.time()), UTC)
    message["Date"] = format_datetime(created)
    message["Message-ID"] = f"<{job.id}@{author.domain}>"
    if payload.html is None or payload.text is not None:
        message.set_content(payload.text or "")
        if payload.html is not None:
            message.add_alternative(payload.html, subtype="html")
    else:
        message.set_content(payload.html, subtype="html")
    return message


async def _attach(job: Job, message: EmailMessage, reference: FileRef) -> None:
    file = await job.files.stat(reference)
    attached = sum(len(part.get_payload()) * 3 // 4 for part in message.iter_attachments())
    if attached + (file.size or 0) > MAX_BYTES:
        raise Permanent("too_large", f"the attachments have more than {MAX_BYTES} bytes")
    data = await job.files.read(file, MAX_BYTES)
    content_type = (file.content_type or OCTET_STREAM).partition(";")[0].strip()
    plain = re.fullmatch(r"(?!multipart/|message/)[a-z0-9.+-]+/[a-z0-9.+-]+", content_type)
    main, _, sub = (content_type if plain else OCTET_STREAM).partition("/")
    name = re.sub(rf"[{_CONTROL}\"\\/]", "_", (file.name or "file").rpartition("/")[2]) or "file"
    await asyncio.to_thread(message.add_attachment, data, maintype=main, subtype=sub, filename=name)
