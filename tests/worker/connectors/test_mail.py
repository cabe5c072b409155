"""`email.send` through a real SMTP server; what arrives is read by Python's own parser."""

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from pydantic import ValidationError

from tandem_shared.errors import Misconfigured
from tandem_shared.jobs.ids import new_id
from tandem_shared.settings import Settings, load_settings, masked_settings
from tandem_worker.connectors.mail import open_mail
from tandem_worker.errors import TaskError
from tandem_worker.task import task_of
from tandem_worker.tasks.email import send
from tests.conftest import eventually
from tests.worker.bench import Bench, open_bench

SCHEMA = jsonschema_rs.validator_for(task_of(send).entry.payload_schema)
MAIL = {
    "from": "Orders <orders@example.org>",
    "to": "ada@example.org",
    "subject": "Hello",
    "text": "It works.",
}


class Post:
    """Keeps mails, and refuses recipients and texts that ask for it."""

    def __init__(self) -> None:
        self.got: list[Envelope] = []
        self.over = threading.Event()

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("full"):
            return "452 mailbox is full"
        if address.startswith("nobody"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        if b"refuse this" in (envelope.original_content or b""):
            return "554 this is spam"
        if b"later please" in (envelope.original_content or b""):
            return "451 try again"
        self.got.append(envelope)
        if b"say nothing" in (envelope.original_content or b""):
            await asyncio.to_thread(self.over.wait, 10)
        return "250 taken"

    def message(self) -> EmailMessage:
        """The last mail."""
        data = self.got[-1].original_content
        assert data is not None
        parsed = message_from_bytes(data, policy=policy.default)
        assert isinstance(parsed, EmailMessage)
        return parsed


def authenticate(
    server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
) -> AuthResult:
    good = isinstance(data, LoginPassword) and (data.login, data.password) == (b"ann", b"p@ss")
    return AuthResult(success=good, handled=False)  # the server sends the answer


@contextmanager
def serving(post: Post, **more: Any) -> Iterator[int]:
    """An SMTP server on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    controller = Controller(post, hostname="127.0.0.1", port=port, **more)
    controller.start()
    try:
        yield port
    finally:
        controller.stop()


@asynccontextmanager
async def opened(
    tmp_path: Path, post: Post, query: str = "tls=none", **more: Any
) -> AsyncIterator[Bench]:
    with serving(post, **more) as port:
        async with open_bench(tmp_path, smtp_url=f"smtp://127.0.0.1:{port}?{query}") as bench:
            yield bench


@pytest.fixture
def post() -> Post:
    return Post()


@pytest.fixture
async def bench(tmp_path: Path, post: Post) -> AsyncIterator[Bench]:
    async with opened(tmp_path, post) as bench:
        yield bench


async def deliver(bench: Bench, payload: dict[str, Any], **job: Any) -> Any:
    given = {**MAIL, **payload}
    SCHEMA.validate(given)
    result = await bench.run(send, given, **{"id": new_id(), **job})
    jsonschema_rs.validator_for(task_of(send).entry.result_schema).validate(result)
    return result


async def failure(bench: Bench, payload: dict[str, Any]) -> TaskError:
    with pytest.raises(TaskError) as caught:
        await deliver(bench, payload)
    return caught.value


async def test_a_mail_is_delivered(bench: Bench, post: Post) -> None:
    id, subject = new_id(), "Grüße aus Tromsø " * 10 + "!"
    given = {
        "to": ["Ada Ünal <ada@example.org>", "bob@example.org"],
        "cc": "carol@example.org",
        "bcc": ["dave@example.org", "ada@example.org"],
        "reply_to": "help@example.org",
        "subject": subject,
        "text": "Hej, världen\n" + "x" * 2000,
        "html": "<p>Hej, <b>världen</b></p>",
    }
    result = await deliver(bench, given, id=id)
    everybody = ["ada@example.org", "bob@example.org", "carol@example.org", "dave@example.org"]
    assert result == {"message_id": f"<{id}@example.org>", "accepted": everybody, "refused": []}
    assert (post.got[-1].mail_from, post.got[-1].rcpt_tos) == ("orders@example.org", everybody)
    mail = post.message()
    assert mail["From"] == "Orders <orders@example.org>"
    assert mail["To"] == "Ada Ünal <ada@example.org>, bob@example.org"
    assert (mail["Cc"], mail["Reply-To"], mail["Bcc"]) == (
        "carol@example.org",
        "help@example.org",
        None,
    )
    assert mail["Subject"] == subject
    assert mail["Message-ID"] == f"<{id}@example.org>"
    text, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert text is not None
    assert html is not None
    assert text.get_content().splitlines() == ["Hej, världen", "x" * 2000]
    assert html.get_content().strip() == given["html"]
    raw = post.got[-1].original_content
    assert raw is not None
    assert b"dave" not in raw
    assert raw.isascii()
    assert max(map(len, raw.split(b"\r\n"))) <= 998


async def test_another_attempt_sends_the_same_mail(bench: Bench, post: Post) -> None:
    id = new_id()
    first = await deliver(bench, {}, id=id)
    assert await deliver(bench, {}, id=id, attempt=2) == first
    assert post.got[0].original_content == post.got[1].original_content
    assert (await deliver(bench, {}))["message_id"] != first["message_id"]


async def test_attachments_come_from_the_file_store(bench: Bench, post: Post) -> None:
    data = bytes(range(256)) * 1000
    one = await bench.upload("röwe.bin", data, "application/octet-stream")
    two = await bench.upload("rows.csv", b"a,b\r\n1,2\r\n", "text/csv")
    await deliver(bench, {"attachments": [{"file": one}, {"file": two}]})
    first, second = post.message().iter_attachments()
    assert (first.get_filename(), first.get_content()) == ("röwe.bin", data)
    assert (second.get_filename(), second.get_content_type()) == ("rows.csv", "text/csv")
    assert second.get_payload(decode=True) == b"a,b\r\n1,2\r\n"
    assert (await failure(bench, {"attachments": [{"file": "gone"}]})).type == "file_not_found"


async def test_the_size_of_attachments_is_limited(bench: Bench, post: Post) -> None:
    big = {"file": await bench.upload("big", bytes(13 << 20), "application/zip")}
    error = await failure(bench, {"attachments": [big, big]})
    assert (error.type, error.retryable, post.got) == ("too_large", False, [])


@pytest.mark.parametrize(
    "text", ["a\r\nBcc: x@example.org", "a\nb", "a\rb", "a\x00b", "a\x85b", "a\u2028b"]
)
@pytest.mark.parametrize("field", ["subject", "to", "cc", "bcc", "from", "reply_to"])
async def test_headers_cannot_be_injected(bench: Bench, post: Post, field: str, text: str) -> None:
    value = text if field == "subject" else f"{text} <ada@example.org>"
    assert not SCHEMA.is_valid({**MAIL, field: value})
    with pytest.raises(ValidationError):
        await bench.run(send, {**MAIL, field: value})
    assert post.got == []


@pytest.mark.parametrize(
    "address",
    [
        *(
            "",
            "ada",
            "@example.org",
            "ada@",
            "ada@@example.org",
            "a b@example.org",
            "a@example.org, b@example.org",
        ),
        *(
            "ada@example.org\n",
            "ada@-x",
            "<ada@example.org",
            "a..b@example.org",
            "x <a@example.org> <b@example.org>",
        ),
    ],
)
async def test_an_invalid_address_is_refused(bench: Bench, address: str) -> None:
    with pytest.raises(ValidationError):
        await bench.run(send, {**MAIL, "to": address})


async def test_a_file_name_cannot_inject_a_header(bench: Bench, post: Post) -> None:
    file = await bench.upload('a"; filename=evil\r\nX-Evil: 1.txt', b"x", "text/plain\r\nX-Evil: 1")
    await deliver(bench, {"attachments": [{"file": file}]})
    (part,) = post.message().iter_attachments()
    assert part["X-Evil"] is None
    assert part.get_content_type() == "application/octet-stream"


async def test_refused_recipients_are_listed(bench: Bench) -> None:
    result = await deliver(bench, {"to": ["ada@example.org", "nobody@example.org"]})
    assert result["accepted"] == ["ada@example.org"]
    assert result["refused"] == [
        {"address": "nobody@example.org", "code": 550, "message": "no such user"}
    ]


@pytest.mark.parametrize(
    ("change", "retryable"),
    [
        ({"to": "nobody@example.org"}, False),
        ({"to": "full@example.org"}, True),
        ({"text": "refuse this"}, False),
        ({"text": "later please"}, True),
    ],
)
async def test_transient_refusals_are_retryable(
    bench: Bench, change: dict[str, Any], retryable: bool
) -> None:
    error = await failure(bench, change)
    assert (error.type, error.retryable) == ("mail_refused", retryable)


async def test_a_cancelled_job_does_not_wait_for_the_server(bench: Bench, post: Post) -> None:
    sending = asyncio.create_task(deliver(bench, {"text": "say nothing"}))
    await eventually(lambda: post.got)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert not post.over.is_set()
    post.over.set()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key in the same file."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = [program, *"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost".split()]
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command, *names, "-keyout", f"{path}.key", "-out", path], check=True, capture_output=True
    )
    return path


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, f"{certificate}.key")
    return context


@pytest.mark.parametrize("password", ["p%40ss", "wrong"])
async def test_starttls_and_login(
    tmp_path: Path, post: Post, certificate: Path, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = {"tls_context": server_context(certificate), "require_starttls": True}
    with serving(post, authenticator=authenticate, auth_required=True, **tls) as port:
        url = f"smtp://ann:{password}@127.0.0.1:{port}?from=shop@example.org"
        async with open_bench(tmp_path, smtp_url=url) as bench:
            if password == "wrong":
                error = await failure(bench, {})
                assert (error.type, error.retryable) == ("mail_connection", False)
                assert "wrong" not in error.message
            else:
                given = {key: value for key, value in MAIL.items() if key != "from"}
                await bench.run(send, given)
                assert post.message()["From"] == "shop@example.org"


async def test_an_untrusted_certificate_is_refused(
    tmp_path: Path, post: Post, certificate: Path
) -> None:
    async with opened(tmp_path, post, "", tls_context=server_context(certificate)) as bench:
        error = await failure(bench, {})
        assert (error.type, error.retryable, post.got) == ("mail_connection", False, [])


async def test_without_tls_nothing_is_sent_unless_the_settings_allow_it(
    tmp_path: Path, post: Post
) -> None:
    async with opened(tmp_path, post, "") as bench:
        error = await failure(bench, {})
        assert (error.type, error.retryable, post.got) == ("mail_connection", False, [])


async def test_mail_without_a_server_fails(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        error = await failure(bench, {})
        assert (error.type, error.retryable) == ("mail_connection", False)
    async with open_bench(tmp_path, smtp_url="smtp://ann:hunter2@127.0.0.1:1") as bench:
        error = await failure(bench, {})
        assert (error.type, error.retryable) == ("mail_connection", True)
        assert "hunter2" not in error.message
        del_from = {key: value for key, value in MAIL.items() if key != "from"}
        with pytest.raises(TaskError, match="name a sender"):
            await bench.run(send, del_from)


@pytest.mark.parametrize(
    "url",
    ["smtp://", "smtp://h:port", "smtp://u:hunter2@h?tls=maybe", "smtp://h/path", "smtps://h?x=1"],
)
async def test_an_invalid_url_stops_the_start(url: str) -> None:
    with pytest.raises(Misconfigured, match="TANDEM_SMTP_URL") as caught:
        async with open_mail(Settings(smtp_url=url)):
            pass
    assert "hunter2" not in str(caught.value)


def test_the_setting_is_checked_and_masked() -> None:
    with pytest.raises(Misconfigured, match="TANDEM_SMTP_URL"):
        load_settings(smtp_url="http://h")
    assert (
        masked_settings(load_settings(smtp_url="smtp://u:hunter2@h:587"))["TANDEM_SMTP_URL"]
        == "smtp://u:***@h:587"
    )
