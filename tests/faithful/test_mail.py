"""Mails with header syntax in their texts: independent parsers read back the same letters."""

import shutil
import subprocess
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import getaddresses
from pathlib import Path
from typing import Any

import pytest

from tandem_worker.tasks.email import send
from tests.worker.bench import open_bench
from tests.worker.connectors.test_mail import Post, serving

TEXTS = [
    "=?utf-8?q?hello=0D=0ABcc=3A_x=40example.org?=",
    "=?utf-8?b?aGVsbG8NCg0KYm9keQ==?=",
    "=?utf-8?q?one?= =?utf-8?q?two?=",
    "=?x-unknown?q?=41?=",
    "plain",
    "Grüße aus Tromsø 🎉",
    "=?",
    "a" * 500,
    "word " * 150 + "end",
    "ä" * 300,
    "Bcc: x@example.org",
    'quotes " and \\ and (comments) : ;',
]


async def delivered(tmp_path: Path, payload: dict[str, Any], name: str | None = None) -> bytes:
    """The bytes of the mail as the server received them."""
    post = Post()
    with serving(post) as port:
        async with open_bench(tmp_path, smtp_url=f"smtp://127.0.0.1:{port}?tls=none") as bench:
            given = {"from": "a@example.org", "to": "b@example.org", "subject": "s", **payload}
            if name is not None:
                file = await bench.upload(name, b"data", "text/plain")
                given["attachments"] = [{"file": file}]
            await bench.run(send, given, id="job")
    data = post.got[-1].original_content
    assert data is not None
    return data


def head(data: bytes) -> list[str]:
    """The names of the header's fields, read from the bytes alone."""
    lines = data.partition(b"\r\n\r\n")[0].split(b"\r\n")
    return [line.partition(b":")[0].decode().lower() for line in lines if line[:1] not in b" \t"]


def parsed(data: bytes) -> EmailMessage:
    message = message_from_bytes(data, policy=policy.default)
    assert isinstance(message, EmailMessage)
    return message


@pytest.mark.parametrize("text", TEXTS)
async def test_a_subject_is_its_letters(tmp_path: Path, text: str) -> None:
    data = await delivered(tmp_path, {"subject": text, "text": "body"})
    assert "bcc" not in head(data)
    assert len(head(data)) == len(set(head(data)))
    assert max(map(len, data.split(b"\r\n"))) <= 998
    assert str(parsed(data)["Subject"]) == text
    old = message_from_bytes(data)
    unfolded = str(old["Subject"]).replace("\r\n", "").replace("\n", "")
    assert str(make_header(decode_header(unfolded))) == text


@pytest.mark.parametrize("text", [text for text in TEXTS if len(text) <= 300])
@pytest.mark.parametrize("field", ["from", "to", "cc", "reply_to"])
async def test_a_display_name_is_its_letters(tmp_path: Path, field: str, text: str) -> None:
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    data = await delivered(tmp_path, {field: f'"{quoted}" <j@example.org>'})
    assert "bcc" not in head(data)
    header = parsed(data)[field.replace("_", "-")]
    (address,) = header.addresses
    # This parser leaves the blanks between the encoded words of a name, against RFC 2047.
    assert address.display_name.replace(" ", "") == text.replace(" ", "")
    assert address.addr_spec == "j@example.org"
    old = str(message_from_bytes(data)[field.replace("_", "-")])
    ((name, spec),) = getaddresses([old.replace("\r\n", "").replace("\n", "")])
    assert (str(make_header(decode_header(name))), spec) == (text, "j@example.org")


@pytest.mark.parametrize("text", [text for text in TEXTS if '"' not in text])
async def test_the_name_of_an_attachment_is_its_letters(tmp_path: Path, text: str) -> None:
    name = text[:199]
    data = await delivered(tmp_path, {"text": "body"}, name=name)
    (part,) = parsed(data).iter_attachments()
    assert part.get_filename() == name
    assert part.get_content() == "data"


@pytest.mark.parametrize(
    ("given", "name", "address"),
    [
        ('"Doe, John" <j@example.org>', "Doe, John", "j@example.org"),
        ("info@münchen.de", "", "info@xn--mnchen-3ya.de"),
        ("Büro <info@bücher.example>", "Büro", "info@xn--bcher-kva.example"),
        ("j@example.org", "", "j@example.org"),
    ],
)
async def test_addresses_as_people_write_them(
    tmp_path: Path, given: str, name: str, address: str
) -> None:
    (found,) = parsed(await delivered(tmp_path, {"to": given, "text": "x"}))["To"].addresses
    assert (found.display_name, found.addr_spec) == (name, address)


async def test_a_tool_of_another_language_reads_the_same_subject(tmp_path: Path) -> None:
    if (perl := shutil.which("perl")) is None:
        pytest.skip("perl is not on PATH: not checked how Encode reads a subject")
    text = TEXTS[0]
    data = await delivered(tmp_path, {"subject": text, "text": "body"})
    lines = data.decode().replace("\r\n ", " ").split("\r\n")
    subject = next(line for line in lines if line.startswith("Subject: ")).removeprefix("Subject: ")
    script = "use Encode; binmode STDOUT, ':utf8'; print decode('MIME-Header', $ARGV[0])"
    done = subprocess.run([perl, "-e", script, subject], capture_output=True, check=True, text=True)
    assert done.stdout == text
