"""What HTTP headers say of a file: its names in Content-Disposition, and its media type."""

import mimetypes
import re
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, unquote_to_bytes

from tandem_shared.files.names import OCTET_STREAM

MAX_HEADER_CHARS = 8 << 10  # of a Content-Disposition; the rest is ignored
MAX_PARTS = 100  # of one name

# A quoted value without its closing quote reaches to the end, so that each character is read once.
_PARAMETER = re.compile(
    r';\s*+([^\s=;"]++)\s*+=\s*+(?:"((?:[^"\\]|\\.)*+)(?:"|\\?\Z)|([^;]*+))', re.DOTALL
)
_NAME = re.compile(r"filename(\*(?:0|[1-9][0-9]?)(?=\*|\Z))?(\*)?", re.ASCII | re.IGNORECASE)
# Python caches every unknown charset that it is asked for, so only these are looked up.
_CHARSET = re.compile(
    r"utf-?8|us-ascii|iso-8859-[0-9]{1,2}|windows-125[0-8]|koi8-[ru]|shift_jis|euc-(?:jp|kr)"
    r"|gb2312|gbk|gb18030|big5",
    re.ASCII | re.IGNORECASE,
)
_MEDIA_TYPE = re.compile(
    r"[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}( *;[\x20-\x7e]{0,200})?", re.ASCII
)


def disposition_names(header: str) -> list[str]:
    """The file names in a Content-Disposition, the best first (RFC 6266, 4.3).

    `filename*` (RFC 8187) comes before `filename`, and that before a name in several parts
    (`filename*0`, RFC 2231). A value in an unknown charset, or not in the one that it names, comes
    last.
    """
    extended: list[str] = []
    plain: list[str] = []
    undecodable: list[str] = []
    parts: dict[int, tuple[bool, str]] = {}
    for match in _PARAMETER.finditer(header[:MAX_HEADER_CHARS]):
        known = _NAME.fullmatch(match[1])
        if known is None:
            continue
        value = match[3].strip() if match[2] is None else re.sub(r"\\(.)", r"\1", match[2])
        if known[1]:
            parts.setdefault(int(known[1][1:]), (known[2] is not None, value))
        elif known[2]:
            _decode(value, extended, undecodable)
        else:
            plain.append(value)
    joined: list[str] = []
    if 0 in parts:
        _join(parts, joined, undecodable)
    return [name for name in (*extended, *plain, *joined, *undecodable) if name]


def _decode(value: str, decoded: list[str], undecodable: list[str]) -> None:
    """Appends the text of `charset'language'percent-encoded` to one of the lists."""
    charset, _, rest = value.partition("'")
    encoded = rest.partition("'")[2] if "'" in rest else value
    if _CHARSET.fullmatch(charset):
        try:
            decoded.append(unquote_to_bytes(encoded).decode(charset))
        except (ValueError, LookupError):  # there is no ISO-8859-12
            pass
        else:
            return
    undecodable.append(unquote(encoded))


def _join(parts: dict[int, tuple[bool, str]], joined: list[str], undecodable: list[str]) -> None:
    """Joins the parts 0, 1, … up to the first that is missing; the first one has the charset."""
    encoded, value = parts[0]
    for number in range(1, MAX_PARTS):
        if number not in parts:
            break
        part_encoded, part = parts[number]
        value += quote(part) if encoded and not part_encoded else part
    if encoded:
        _decode(value, joined, undecodable)
    else:
        joined.append(value)


def media_type(given: str | None, name: str | None) -> str:
    """`given` if it is a media type that a header can hold, else that of the name's extension."""
    if given is not None and _MEDIA_TYPE.fullmatch(given):
        return given
    # Only of the extensions: mimetypes reads a whole name as a URL, and believes what a data: URL
    # says of its type.
    extensions = "".join(PurePosixPath(name or "").suffixes[-2:])
    guessed = mimetypes.guess_type(f"x{extensions}")[0]
    return guessed if guessed is not None and _MEDIA_TYPE.fullmatch(guessed) else OCTET_STREAM
