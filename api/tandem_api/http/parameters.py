"""Request headers and query parameters, read as their RFCs define them."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from tandem_shared.errors import Malformed
from tandem_shared.times import parse_duration

MAX_WAIT_SECONDS = 30.0  # of `?wait=` and `Prefer: wait`
MAX_KEY_BYTES = 255  # of an idempotency key
MAX_TRACEPARENT_CHARS = 128
MAX_NAME_CHARS = 200  # of an unknown query parameter that an error repeats
MAX_PARAMETER_ERRORS = 20
MAX_OPTIONS_CHARS = 4096  # of a header with parameters
MAX_WHOLE_NUMBER = 10**18  # of a header; more than any file has bytes
TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
# Visible ASCII, bare or as a String of RFC 8941, as /openapi.json shows it.
KEY_PATTERN = r'^([!#-~]([ -~]*[!-~])?|"([ !#-\[\]-~]|\\["\\])+")$'
WAIT_PATTERN = r"^[0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h|d)?$"
# A String of RFC 8941; its parameters are ignored.
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"[ \t]*(?:;.*)?')
_TAG = re.compile(r'(?:W/)?("[^"]*")')
# An item of a list (RFC 9110, 5.6.1): a comma within quotes does not end it.
_ITEM = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*+(?:"|\\?\Z))++')
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def read_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The fields by their lower-case names; the lines of one field are joined (RFC 9110, 5.3).

    `Request.headers` would search all fields for each one that is asked for, and most are missing.
    """
    headers: dict[str, str] = {}
    for name, value in raw:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def headers_of(request: Request) -> Mapping[str, str]:
    """The headers that Edge has read."""
    headers: Mapping[str, str] = request.scope["state"]["headers"]
    return headers


def header_options(value: str) -> tuple[bytes, dict[bytes, bytes]]:
    """A media type or disposition, and its parameters; both empty if the value is too long.

    The parser takes 0.2 s for 60 KiB of semicolons.
    """
    if len(value) > MAX_OPTIONS_CHARS:
        return b"", {}
    return parse_options_header(value)


def whole_number(digits: str) -> int:
    """The number, or MAX_WHOLE_NUMBER: Python's own int() refuses more than 4300 digits."""
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) < len(str(MAX_WHOLE_NUMBER)) else MAX_WHOLE_NUMBER


def idempotency_key(request: Request) -> str | None:
    """The key, quoted or bare. Raises Malformed."""
    if "idempotency-key" not in headers_of(request):
        return None
    lines = request.headers.getlist("idempotency-key")
    if len(lines) > 1:
        raise Malformed("Idempotency-Key: send it once")
    try:
        text = lines[0].strip().encode("latin-1").decode()
    except UnicodeDecodeError:
        raise Malformed("Idempotency-Key: is not UTF-8") from None
    if text.startswith('"'):
        match = _QUOTED.fullmatch(text)
        if match is None:
            raise Malformed('Idempotency-Key: its quotes do not match; send "key" or key')
        text = re.sub(r"\\(.)", r"\1", match[1])
    if not 0 < len(text.encode()) <= MAX_KEY_BYTES:
        raise Malformed(f"Idempotency-Key: must have 1 to {MAX_KEY_BYTES} bytes")
    return text


def preferred_wait(request: Request) -> int | None:
    """Seconds of `Prefer: wait=N` (RFC 7240), capped; None without a valid one."""
    for preference in _ITEM.findall(headers_of(request).get("prefer", "")):
        name, _, number = preference.partition(";")[0].partition("=")
        number = number.strip().strip('"')
        if name.strip().lower() == "wait" and number.isascii() and number.isdecimal():
            return int(min(MAX_WAIT_SECONDS, int(number[:9])))
    return None


def traceparent(request: Request) -> str | None:
    """The W3C trace context, or None without a valid one."""
    value = headers_of(request).get("traceparent", "")
    valid = len(value) <= MAX_TRACEPARENT_CHARS and TRACEPARENT.fullmatch(value)
    return value if valid else None


def matches(request: Request, etag: str) -> bool:
    """Whether If-None-Match names this entity tag, compared weakly (RFC 9110, 13.1.2)."""
    value = headers_of(request).get("if-none-match", "")
    return value.strip() == "*" or etag in _TAG.findall(value)


def wait_parameter(request: Request) -> float | None:
    """Seconds of `?wait=`, a duration or a number, capped; None without it. Raises Malformed."""
    text = _parameter(request, "wait")
    if text is None:
        return None
    try:
        return min(
            MAX_WAIT_SECONDS, parse_duration(float(text) if _NUMBER.fullmatch(text) else text)
        )
    except ValueError as error:
        raise Malformed(f"wait: {str(error)[:300]}") from None


def flag(request: Request, name: str) -> bool:
    """A query parameter that is true or false; false without it. Raises Malformed."""
    text = _parameter(request, name)
    value = False if text is None else _FLAGS.get(text.lower())
    if value is None:
        raise Malformed(f"{name}: must be true or false")
    return value


def parameter_errors(
    request: Request, known: Collection[str], repeated: Collection[str] = (), prefix: str = ""
) -> list[tuple[str, str]]:
    """What is wrong with the names in the query string: unknown ones, and those given twice.

    Those of `repeated` may be given several times; any name that begins with `prefix` is known.
    """
    errors: list[tuple[str, str]] = []
    for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
        if name in repeated:
            continue
        place = f"/{name[:MAX_NAME_CHARS]}"
        if name not in known and not (prefix and name != prefix and name.startswith(prefix)):
            expected = ", ".join(sorted({*known, *repeated, *([f"{prefix}…"] if prefix else [])}))
            errors.append((place, f"is not a known parameter; {_expect(expected)}"))
        elif times > 1:
            errors.append((place, "may be given only once"))
        if len(errors) == MAX_PARAMETER_ERRORS:
            break
    return errors


def _expect(names: str) -> str:
    return f"known are {names}" if names else "this endpoint takes none"


def _parameter(request: Request, name: str) -> str | None:
    # Most requests have no query string, and parsing an empty one takes measurable time.
    return request.query_params.get(name) if request.scope["query_string"] else None
