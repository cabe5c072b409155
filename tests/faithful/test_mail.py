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
from pydantic import ValidationError

from tandem_worker.task import task_of
from tandem_worker.tasks.email import send
from tests.fuzz.values import as_json
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


ADDRESSES = {
    "<a@example.org>": ("", "a@example.org"),
    " <a@example.org>": ("", "a@example.org"),
    '"" <a@example.org>': ("", "a@example.org"),
    "a+b@example.org": ("", "a+b@example.org"),
    "o'brien@example.org": ("", "o'brien@example.org"),
    "a@localhost": ("", "a@localhost"),
    "a@xn--bcher-kva.example": ("", "a@xn--bcher-kva.example"),
    "a@日本.example": ("", "a@xn--wgv71a.example"),
    "a@BÜCHER.example": ("", "a@xn--bcher-kva.example"),
    "two words <a@example.org>": ("two words", "a@example.org"),
    "J. R. <a@example.org>": ("J. R.", "a@example.org"),
    "a (comment) b <a@example.org>": ("a (comment) b", "a@example.org"),
    '"b@example.org" <a@example.org>': ("b@example.org", "a@example.org"),
    '"a\\"b\\\\c" <a@example.org>': ('a"b\\c', "a@example.org"),
    '"a, b; c: d" <a@example.org>': ("a, b; c: d", "a@example.org"),
    "🎉 <a@example.org>": ("🎉", "a@example.org"),
}
NOT_ADDRESSES = [
    # A quoted or non-ASCII local part needs an extension that few servers have.
    '"quoted local"@example.org', '"a.b"@example.org', "jürgen@example.org",
    "Group: a@example.org, b@example.org;", "undisclosed-recipients:;",
    "a@example.org,b@example.org", "a@example.org;b@example.org", "a@example.org b@example.org",
    "a@[127.0.0.1]", "a@-b.org", "a@b..c", "a@.b", "a@b.", "a..b@c.d", ".a@b.c", "a.@b.c",
    "a@b@c.d", "@a.b:c@d.e", "Name a@b.c", "a@b.c (comment)", "a@b.c ", "a@b.c\n", "a\0@b.c",
    '"a" "b" <a@b.c>',
    "a\r\nBcc: x@y.z <a@b.c>", '"a\r\nBcc: x@y.z" <a@b.c>', '"a\0" <a@b.c>', "a@b.c\r\nBcc: x@y.z",
    "<a@b.c\r\nBcc: x@y.z>", "a\u2028b <a@b.c>", "a\u0085b <a@b.c>", f"{'x' * 65}@b.c",
    f"a@{'b' * 64}.c", "a@b.c <d@e.f>", "<a@b.c> <d@e.f>", "a;b <d@e.f>", "a@b c.d", "", "a", "a@",
]  # fmt: skip


@pytest.mark.parametrize("given", ADDRESSES)
async def test_neighbours_of_addresses_are_read_by_two_parsers(tmp_path: Path, given: str) -> None:
    data = await delivered(tmp_path, {"to": given, "text": "x"})
    (found,) = parsed(data)["To"].addresses
    assert (found.display_name, found.addr_spec) == ADDRESSES[given]
    assert not parsed(data)["To"].defects
    old = str(message_from_bytes(data)["To"]).replace("\r\n", "").replace("\n", "")
    ((name, spec),) = getaddresses([old])
    assert (str(make_header(decode_header(name))), spec) == ADDRESSES[given]


@pytest.mark.parametrize("given", NOT_ADDRESSES)
@pytest.mark.parametrize("field", ["from", "to", "cc", "bcc", "reply_to"])
async def test_what_is_no_address_is_refused_in_every_field(
    tmp_path: Path, field: str, given: str
) -> None:
    with pytest.raises(ValidationError):
        task_of(send).decode(as_json({"to": "a@b.c", "subject": "s", "text": "x", field: given}))


@pytest.mark.parametrize("letter", ["\r", "\n", "\0", "\u0085", "\u2028", "\x1b"])
async def test_a_subject_has_no_line_ends_of_any_reader(letter: str) -> None:
    with pytest.raises(ValidationError):
        task_of(send).decode(as_json({"to": "a@b.c", "subject": f"a{letter}Bcc: x@y.z"}))


@pytest.mark.parametrize("subject", [" ", "  a", "a  ", "a  b", "a" * 76, "é" + " x" * 300, "\ta"])
async def test_blanks_of_a_subject_stay(tmp_path: Path, subject: str) -> None:
    if "\t" in subject:
        with pytest.raises(ValidationError):
            task_of(send).decode(as_json({"to": "a@b.c", "subject": subject}))
        return
    data = await delivered(tmp_path, {"subject": subject, "text": "x"})
    assert str(parsed(data)["Subject"]) == subject


BODIES = [
    "a\r\n.\r\nb", "\r\n.\r\n..\r\n...", "x" * 3000, "ü" * 3000, "a\rb", "a\nb\n", "\0",
    "From x\r\n", "tab\t \r\n trailing  \r\n", "\x1b[0m", "\u2028", " " * 2000, "=20=",
    "日本\r\n.\r\n", "",
    "x" * 998 + "\r\n" + "y" * 999, "QUIT\r\n.\r\nMAIL FROM:<a@b.c>\r\n",
]  # fmt: skip


@pytest.mark.parametrize("text", BODIES)
async def test_bodies_travel_in_short_lines_of_seven_bits(tmp_path: Path, text: str) -> None:
    data = await delivered(tmp_path, {"text": text, "html": text})
    assert data.isascii()
    assert max(map(len, data.split(b"\r\n"))) <= 76
    assert b"\n" not in data.replace(b"\r\n", b"")
    bodies = [part for part in message_from_bytes(data).walk() if not part.is_multipart()]
    assert len(bodies) == 2
    for part in bodies:
        raw = part.get_payload(decode=True)
        assert isinstance(raw, bytes)
        assert lines_of(raw.decode()) == lines_of(text)
    for body in parsed(data).walk():
        if not body.is_multipart():
            assert lines_of(body.get_content()) == lines_of(text)


def lines_of(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n").split("\n")


@pytest.mark.parametrize(
    "name",
    [
        "a;b.txt", "a b.txt", "a%20b.txt", "UTF-8''x.txt", "a'b.txt", "a*b.txt", "a=b.txt",
        ".hidden",
        "a(b).txt", "x" * 190 + ".txt", "ü" * 90 + ".txt", "日.txt", "=?utf-8?q?x?=.txt",
    ],
)  # fmt: skip
async def test_names_of_attachments_are_read_by_two_parsers(tmp_path: Path, name: str) -> None:
    data = await delivered(tmp_path, {"text": "x"}, name=name)
    assert max(map(len, data.split(b"\r\n"))) <= 78
    for message in (parsed(data), message_from_bytes(data)):
        assert [part.get_filename() for part in message.walk() if part.get_filename()] == [name]


@pytest.mark.parametrize("letter", ['"', "\\", "\u2028", "\u0085"])
async def test_letters_that_break_headers_are_replaced_in_names(
    tmp_path: Path, letter: str
) -> None:
    data = await delivered(tmp_path, {"text": "x"}, name=f"a{letter}b.txt")
    (part,) = parsed(data).iter_attachments()
    assert part.get_filename() == "a_b.txt"
