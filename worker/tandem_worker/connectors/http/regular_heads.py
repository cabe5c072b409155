"""Header blocks that aiohttp's parser refuses and curl takes, put into a form that both take.

They have folded lines, odd names or status lines, several lengths, or transfer codings other than
chunked. A plain block, as most are, costs one look.
"""

import re
from collections.abc import Callable

from aiohttp.http_exceptions import BadHttpMessage

from tandem_worker.connectors.http.decoding import codings

MAX_PLAIN_BYTES = 4000  # which hold fewer headers than any bound allows

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_LINE = (
    rb"(?!(?i:content-length|transfer-encoding)[ \t]*:)" + _TOKEN + rb":[^\r\n\x00]*\r\n(?![ \t])"
)
_PLAIN = re.compile(
    rb"HTTP/1\.[01] [0-9]{3}(?: [^\x00-\x08\x0a-\x1f\x7f]*)?\r\n(?![ \t])"
    rb"(?:" + _LINE + rb")*(?:(?i:content-length): ?[0-9]+\r\n(?:" + _LINE + rb")*)?\r\n"
)
_FOLD = re.compile(rb"\r?\n[ \t]+")
_STATUS = re.compile(rb"(?i)HTTP/(1\.[01]|[23](?:\.0)?) +([0-9]{3})(?: +([^\x00]*))?")
_NAME = re.compile(
    _TOKEN + rb"[ \t]*:|[^:]*$"
)  # what has no colon is left for the parser to refuse
_FRAMING = re.compile(
    rb"(?im)^(content-length|transfer-encoding)[ \t]*:[ \t]*([^\r\n]*?)[ \t]*\r?\n"
)


def plain_head(data: bytes) -> int:
    """Where the header block at the start of the data ends, if it needs no change; else 0."""
    match = _PLAIN.match(data)
    return match.end() if match is not None and match.end() <= MAX_PLAIN_BYTES else 0


def regular_head(head: bytes) -> tuple[bytes, list[str]]:
    """The block as aiohttp's parser takes it, and the codings of the body below its chunks.

    What curl refuses, too, is left as it is for the parser to refuse. Raises BadHttpMessage for a
    NUL and for an unknown transfer coding.
    """
    head = _straightened(head)
    framing = _FRAMING.findall(head)
    lengths = [value for name, value in framing if name.lower() == b"content-length"]
    if len(lengths) == len(framing) < 2 and b"," not in b"".join(lengths):
        return head, []
    transfer = b",".join(value for name, value in framing if name.lower() != b"content-length")
    names = [name.strip(" \t").lower() for name in transfer.decode("latin-1").split(",")]
    names = [name for name in names if name not in ("", "identity")]
    if names:
        return _in_chunks(head, names)
    return _FRAMING.sub(_once(_one_length(lengths)), head), []


def _in_chunks(head: bytes, names: list[str]) -> tuple[bytes, list[str]]:
    """The block of a body with transfer codings: a length does not count (RFC 9112, 6.3)."""
    chunked = names[-1] == "chunked"
    below = [name for name in names if name != "chunked"]
    if codings(below) != below or names[: len(below)] != below:
        raise BadHttpMessage("the transfer coding is unknown")
    return _FRAMING.sub(_once(b"Transfer-Encoding: chunked\r\n" if chunked else b""), head), below


def _one_length(lengths: list[bytes]) -> bytes:
    """Equal lengths as one; others stay for the parser to refuse."""
    values = [value.strip() for line in lengths for value in line.split(b",")]
    if len({int(value) if value.isdigit() else value for value in values}) == 1:
        values = values[:1]
    return b"".join(b"Content-Length: %b\r\n" % value for value in values)


def _once(lines: bytes) -> "Callable[[re.Match[bytes]], bytes]":
    """A replacement for the first match, which removes the others."""
    left = iter((lines,))
    return lambda _: next(left, b"")


def _straightened(head: bytes) -> bytes:
    if b"\0" in head:
        raise BadHttpMessage("the headers have a NUL")
    unfolded = _FOLD.sub(b" ", head).replace(b"\r\n", b"\n")
    status, *lines = unfolded.removesuffix(b"\n\n").split(b"\n")
    match = _STATUS.fullmatch(status)
    if match is None:
        return head
    version = match[1] if match[1].startswith(b"1") else b"1.1"
    reason = (match[3] or b"").replace(b"\r", b" ")
    kept = [line.replace(b"\r", b" ") for line in lines if _NAME.match(line)]
    return b"\r\n".join((b"HTTP/%b %b %b" % (version, match[2], reason), *kept, b"", b""))
