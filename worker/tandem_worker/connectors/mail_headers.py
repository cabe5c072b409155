"""Headers of a mail (RFC 5322, 2047, 2231), encoded here and never parsed.

Python's own message policies decode encoded words in what they are given, so that a subject could
become header lines. Here every text that is not plain goes out as encoded words of exactly its
letters.
"""

import re
from collections.abc import Sequence
from email.header import Header
from typing import NamedTuple
from urllib.parse import quote

import idna

# Reject every character that any mail reader may treat as a line break: header injection.
CONTROL = r"\u0000-\u001f\u007f-\u009f\u2028\u2029"
_LOCAL = r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}"
_ADDRESS = rf"{_LOCAL}@[^\s{CONTROL}@<>()\[\],;:\\\u0022]{{1,255}}"
_QUOTED = rf"\u0022(?:[^\u0022\\{CONTROL}]|\\[^{CONTROL}])*\u0022"
MAILBOX_PATTERN = rf"^({_ADDRESS}|([^{CONTROL}<>\u0022@,;\\]*|{_QUOTED} *)<{_ADDRESS}>)$"
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]*")
_MAX_QUOTED_CHARS = 60  # longer names go out as encoded words, which may be folded anywhere
# An encoded word has at most 75 (RFC 2047). Shorter ones fit on the line of the header's name.
_MAX_WORD_CHARS = 60
_PIECE_BYTES = 18  # of a file name in one parameter, three characters each
NOT_A_MAILBOX = (
    'not a mail address: write a@example.org, Name <a@example.org> or "Doe, J." <a@example.org>'
)


class Mailbox(NamedTuple):
    """A display name, which may be empty, and an address in ASCII."""

    name: str
    address: str

    @property
    def domain(self) -> str:
        return self.address.rpartition("@")[2]

    def encoded(self) -> str:
        """The mailbox as a header has it."""
        if not self.name:
            return self.address
        return f"{_phrase(self.name)} <{self.address}>"


def parse_mailbox(text: str) -> Mailbox:
    """`a@example.org`, `Name <a@example.org>` or `"Doe, J." <a@example.org>`. Raises ValueError.

    The domain may be an internationalized one; it becomes its ASCII form (RFC 5891).
    """
    if re.fullmatch(MAILBOX_PATTERN, text) is None:
        raise ValueError(NOT_A_MAILBOX)
    name, bracket, rest = text.rpartition("<")
    address = rest.removesuffix(">") if bracket else text
    name = name.strip()
    if name.startswith('"'):
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    local, _, domain = address.rpartition("@")
    if local.startswith(".") or local.endswith(".") or ".." in local:
        raise ValueError(NOT_A_MAILBOX)
    try:
        ascii_domain = idna.encode(domain, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        raise ValueError(NOT_A_MAILBOX) from None
    if ascii_domain.endswith("."):  # mail has no trailing dot (RFC 5321, 2.3.5)
        raise ValueError(NOT_A_MAILBOX)
    return Mailbox(name, f"{local}@{ascii_domain}")


def encoded_text(text: str) -> str:
    """Unstructured text as a header has it: unchanged if that is unambiguous and can be folded."""
    foldable = max(map(len, text.split(" "))) <= _MAX_WORD_CHARS
    kept = text == text.strip()  # parsers drop blanks around the text
    return text if _is_plain(text) and kept and foldable else _words(text)


def encoded_mailboxes(mailboxes: Sequence[Mailbox]) -> str:
    """A list of mailboxes as a header has it."""
    return ", ".join(mailbox.encoded() for mailbox in mailboxes)


def attachment_disposition(name: str) -> str:
    """The Content-Disposition of an attachment; a name that is not short and plain by RFC 2231."""
    if _is_plain(name) and len(name) <= _MAX_WORD_CHARS and name == name.strip():
        return f'attachment; filename="{name}"'
    data = name.encode()
    pieces = [
        quote(data[at : at + _PIECE_BYTES], safe="") for at in range(0, len(data), _PIECE_BYTES)
    ]
    first, *others = pieces
    if not others:
        return f"attachment; filename*=utf-8''{first}"
    more = (f"; filename*{number}*={piece}" for number, piece in enumerate(others, 1))
    return f"attachment; filename*0*=utf-8''{first}{''.join(more)}"


def _phrase(name: str) -> str:
    if not _is_plain(name) or len(name) > _MAX_QUOTED_CHARS:
        return _words(name)
    if _ATOMS.fullmatch(name):
        return name
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _is_plain(text: str) -> bool:
    return text.isascii() and "=?" not in text


def _words(text: str) -> str:
    words = Header(text, "utf-8").encode(splitchars="", maxlinelen=_MAX_WORD_CHARS)
    return words.replace("\n", "")
