"""Mail: `email.send`."""

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

MAX_BYTES = 25 << 20  # of all attachments: they are held in memory, and few servers take more
MAX_RECIPIENTS = 100  # all of to, cc and bcc

# What ends a header's line, here or in some reader's eyes, is in no header.
_CONTROL = r"\u0000-\u001f\u007f-\u009f\u2028\u2029"
_ADDRESS = r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?"
_MAILBOX = rf"^({_ADDRESS}|[^{_CONTROL}<>\"@,;\\]*<{_ADDRESS}>)$"
# Seven bits, since not every server takes eight.
_POLICY = policy.SMTP.clone(cte_type="7bit")


def _address(text: str) -> str:
    mailbox(text)
    return text


def mailbox(text: str) -> Address:
    """`orders@example.org` or `The orders <orders@example.org>`. Raises ValueError."""
    if re.fullmatch(_MAILBOX, text) is None:
        raise ValueError("this is no address: write a@example.org or Name <a@example.org>")
    name, bracket, rest = text.rpartition("<")
    try:
        return Address(
            display_name=name.strip(), addr_spec=rest.removesuffix(">") if bracket else text
        )
    except Exception:  # noqa: BLE001 - the parser raises errors of its own making, IndexError among them
        raise ValueError(
            "this is no address: write a@example.org or Name <a@example.org>"
        ) from None


Mailbox = Annotated[
    str,
    Field(max_length=500, pattern=_MAILBOX, description="a@example.org or Name <a@example.org>"),
    AfterValidator(_address),
]
Mailboxes = Annotated[list[Mailbox], Field(min_length=1, max_length=MAX_RECIPIENTS)] | Mailbox


class Mail(BaseModel):
    """What `email.send` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: Mailboxes
    cc: Mailboxes | None = None
    bcc: Annotated[
        Mailboxes | None, Field(description="get the mail, and nobody reads so in it")
    ] = None
    subject: Annotated[str, Field(max_length=900, pattern=rf"^[^{_CONTROL}]*$")]
    text: str | None = None
    html: Annotated[
        str | None, Field(description="shown in place of the text by readers that can")
    ] = None
    attachments: Annotated[
        list[FileRef] | None, Field(max_length=100, description="at most 25 MiB together")
    ] = None
    from_: Annotated[
        Mailbox | None, Field(alias="from", description="the settings' sender if not given")
    ] = None
    reply_to: Mailbox | None = None


class MailRefusal(TypedDict):
    """A recipient that the server did not take, with its answer."""

    address: str
    code: int
    message: str


class MailResult(TypedDict):
    """The Message-ID, the same in each attempt of a job, and who was accepted by the server and who was not."""

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

    Its Message-ID is made of the job's id, so that a mail that had to be sent again is recognised
    as the same one.
    """
    mailer = job.resources.mail
    sender = payload.from_ or mailer.sender
    if sender is None:
        raise Permanent("mail_refused", "the mail names no sender, nor do the worker's settings")
    recipients = list(
        dict.fromkeys(one.addr_spec for one in _all(payload.to, payload.cc, payload.bcc))
    )
    if len(recipients) > MAX_RECIPIENTS:
        raise Permanent("too_large", f"a mail has at most {MAX_RECIPIENTS} recipients")
    author = mailbox(sender)
    message = _message(job, payload, author)
    for reference in payload.attachments or ():
        await _attach(job, message, reference)
    # In a thread: base64 of many MiB.
    data = await asyncio.to_thread(message.as_bytes)
    await job.progress(0, 1, "sending")
    refusals = await mailer.send(author.addr_spec, recipients, data)
    await job.progress(1, 1)
    lost = {one.address for one in refusals}
    return {
        "message_id": str(message["Message-ID"]),
        "accepted": [one for one in recipients if one not in lost],
        "refused": [
            {"address": one.address, "code": one.code, "message": one.message} for one in refusals
        ],
    }


def _all(*given: Any) -> list[Address]:
    """The mailboxes of one or several fields, each a list, one mailbox or nothing."""
    lists = ([one] if isinstance(one, str) else one or [] for one in given)
    return [mailbox(text) for one in lists for text in one]


def _message(job: Job, payload: Mail, author: Address) -> EmailMessage:
    message = EmailMessage(_POLICY)
    message["From"] = author
    message["To"] = _all(payload.to)
    if payload.cc:
        message["Cc"] = _all(payload.cc)
    if payload.reply_to:
        message["Reply-To"] = mailbox(payload.reply_to)
    message["Subject"] = payload.subject
    # The job's own time: another attempt makes the same mail.
    message["Date"] = format_datetime(
        datetime.fromtimestamp(int(id_time(job.id) or time.time()), UTC)
    )
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
    had = sum(len(part.get_payload()) * 3 // 4 for part in message.iter_attachments())
    if had + (file.size or 0) > MAX_BYTES:
        raise Permanent("too_large", f"the attachments have more than {MAX_BYTES} bytes")
    data = await job.files.read(file, MAX_BYTES)
    kind = (file.content_type or OCTET_STREAM).partition(";")[0].strip()
    if re.fullmatch(r"[a-z0-9.+-]+/[a-z0-9.+-]+", kind) is None or kind.startswith(
        ("multipart/", "message/")
    ):
        kind = OCTET_STREAM
    main, _, sub = kind.partition("/")
    name = re.sub(rf"[{_CONTROL}\"\\/]", "_", (file.name or "file").rpartition("/")[2]) or "file"
    await asyncio.to_thread(message.add_attachment, data, maintype=main, subtype=sub, filename=name)
