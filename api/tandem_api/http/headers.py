"""Request headers and query parameters that mean something to jobs, read as their RFCs say."""

import re
from collections.abc import Iterable
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request

from tandem_api.http.retry import LONGEST
from tandem_shared.errors import Malformed
from tandem_shared.times import parse_duration

KEY_BYTES = 255
TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
_QUOTED = re.compile(
    r'"((?:[^"\\]|\\["\\])*)"[ \t]*(?:;.*)?'
)  # a String of RFC 8941, its parameters passed over
_TAG = re.compile(r'(?:W/)?("[^"]*")')
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
_FLAGS = {"true": True, "1": True, "": True, "false": False, "0": False}


class Fields(Headers):
    """Starlette's, for many questions: those for a name that did not come, as most are, look at nothing."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        super().__init__(raw=list(raw))
        self._first: dict[str, str] = {}
        for name, value in self._list:
            self._first.setdefault(name.decode("latin-1"), value.decode("latin-1"))

    def __contains__(self, key: Any) -> bool:
        return key.lower() in self._first

    def __getitem__(self, key: str) -> str:
        return self._first[key.lower()]

    def get(self, key: str, default: Any = None) -> Any:
        """The first value under this name."""
        return self._first.get(key.lower(), default)

    def getlist(self, key: str) -> list[str]:
        """All values under this name."""
        return super().getlist(key) if key in self else []


def idempotency_key(headers: Headers) -> str | None:
    """The key, quoted or bare. Raises Malformed for one that is none."""
    values = headers.getlist("idempotency-key")
    if not values:
        return None
    if len(values) > 1:
        raise Malformed("Idempotency-Key: send one")
    try:
        text = values[0].strip().encode("latin-1").decode()
    except UnicodeDecodeError:
        raise Malformed("Idempotency-Key: is not UTF-8") from None
    if text.startswith('"'):
        match = _QUOTED.fullmatch(text)
        if match is None:
            raise Malformed("Idempotency-Key: the quotes do not fit")
        text = re.sub(r"\\(.)", r"\1", match[1])
    if not 0 < len(text.encode()) <= KEY_BYTES:
        raise Malformed(f"Idempotency-Key: must have 1 to {KEY_BYTES} bytes")
    return text


def preferred_wait(headers: Headers) -> int | None:
    """Seconds of `Prefer: wait=N` (RFC 7240), capped; None without one that can be understood."""
    for value in headers.getlist("prefer"):
        for preference in value.split(","):
            name, _, number = preference.partition(";")[0].partition("=")
            number = number.strip().strip('"')
            if name.strip().lower() == "wait" and number.isascii() and number.isdecimal():
                return int(min(LONGEST, int(number[:9])))
    return None


def traceparent(headers: Headers) -> str | None:
    """The W3C trace context, None for what is none."""
    value = headers.get("traceparent")
    return (
        value if value is not None and len(value) <= 128 and TRACEPARENT.fullmatch(value) else None
    )


def matches(headers: Headers, etag: str) -> bool:
    """Whether If-None-Match names this entity tag, compared weakly (RFC 9110, 13.1.2)."""
    value = ",".join(headers.getlist("if-none-match"))
    return value.strip() == "*" or etag in _TAG.findall(value)


def waited(request: Request) -> float | None:
    """Seconds of `?wait=`, a duration or a number, capped; None without it. Raises Malformed."""
    text = _parameter(request, "wait")
    if text is None:
        return None
    try:
        return min(LONGEST, parse_duration(float(text) if _NUMBER.fullmatch(text) else text))
    except ValueError as error:
        raise Malformed(f"wait: {str(error)[:300]}") from None


def flag(request: Request, name: str) -> bool:
    """A query parameter that is true or false, false without it. Raises Malformed."""
    text = _parameter(request, name)
    if text is None:
        return False
    if text.lower() not in _FLAGS:
        raise Malformed(f"{name}: must be true or false")
    return _FLAGS[text.lower()]


def _parameter(request: Request, name: str) -> str | None:
    # Most requests have none, and to parse nothing takes its time.
    return request.query_params.get(name) if request.scope["query_string"] else None
