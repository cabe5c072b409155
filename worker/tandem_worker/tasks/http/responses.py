"""HTTP responses as a job's result or error."""

import re
from base64 import b64encode
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NotRequired

import aiohttp
import msgspec
from typing_extensions import TypedDict

from tandem_worker.charsets import charset
from tandem_worker.connectors.http.client import display
from tandem_worker.errors import Permanent, TaskError

MAX_TOTAL_BYTES = 64 << 20  # of all responses of one job
MAX_JSON_DEPTH = 200  # of a body that becomes JSON in the result; pydantic writes 255 levels
MAX_RETRY_AFTER_SECONDS = 7 * 86400.0  # jobs are not retained any longer
# Statuses below 500 after which the same request may succeed.
_TRANSIENT = frozenset({408, 425, 429})
_JSON = re.compile(r"application/json|text/json|.*\+json")
_TEXT = re.compile(
    r"text/.*|.*\+xml|application/(xml|javascript|ecmascript|x-www-form-urlencoded|yaml|toml|sql|graphql"
    r"|x-ndjson|ndjson|jsonl|x-jsonlines|json-seq|jwt)"
)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class ByteBudget:
    """The bytes that one job may hold; more are `too_large` and end the job."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._left = MAX_TOTAL_BYTES

    @property
    def exceeded(self) -> bool:
        return self._left < 0

    def take(self, size: int) -> None:
        self._left -= size
        if self.exceeded:
            limit = f"{MAX_TOTAL_BYTES >> 20} MiB"
            raise Permanent("too_large", f"{self._what} have more than {limit} together")


class ResponseBody(TypedDict):
    """The first of these that the body can be."""

    json: NotRequired[Any]
    text: NotRequired[str]
    base64: NotRequired[str]


def decode_body(response: aiohttp.ClientResponse, data: bytes) -> ResponseBody:
    """The body, by its declared type and then by whether it can be decoded as such."""
    declared = response.content_type.lower() if "Content-Type" in response.headers else ""
    is_json = _JSON.fullmatch(declared) is not None
    if is_json and data:
        try:
            value = msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"))
            if not _too_deep(data, value):
                return {"json": value}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # return it as text
    if not declared or not data or is_json or _TEXT.fullmatch(declared):
        try:
            text = _decode_text(data, response.charset or "utf-8")
        except (ValueError, LookupError):
            pass
        else:
            if "\0" not in text:
                return {"text": text}
    return {"base64": b64encode(data).decode()}


def _too_deep(data: bytes, value: Any) -> bool:
    """Whether the JSON in `data`, decoded as `value`, nests deeper than a result can."""
    brackets = data.translate(None, _NO_BRACKETS)
    if len(brackets) <= 2 * MAX_JSON_DEPTH:
        return False
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _decode_text(data: bytes, declared: str) -> str:
    """The text. Raises ValueError or LookupError if the charset is unknown or does not fit."""
    name = charset(declared)
    text = data.decode(name)
    if name != "utf-8":
        text.encode()  # UTF-7 can decode to half a surrogate pair, which JSON cannot hold
    return text


def joined_headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    """Headers by their names in lower case; repeated ones are joined."""
    joined: dict[str, str] = {}
    for name, value in response.headers.items():
        key = name.lower()
        # Set-Cookie has commas in its dates (RFC 9110, 5.3).
        separator = "\n" if key == "set-cookie" else ", "
        text = header_text(value)
        joined[key] = f"{joined[key]}{separator}{text}" if key in joined else text
    return joined


def header_text(value: str) -> str:
    """The value with replacement characters for bytes that are not UTF-8, which aiohttp escapes."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def unexpected_status(
    method: str, response: aiohttp.ClientResponse, *, repeatable: bool
) -> TaskError:
    """`http_status`; retryable if the request can be repeated and the status may change."""
    status = response.status
    message = f"{method} {display(response.url)} answered {status}"
    retryable = repeatable and (status in _TRANSIENT or status >= 500)
    after = retry_after(response) if retryable else None
    return TaskError("http_status", message, retryable, after=after)


def retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3); a date counts from its own clock."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return min(float(value), MAX_RETRY_AFTER_SECONDS)
    at = parse_date(value)
    if at is None:
        return None
    now = parse_date(response.headers.get("Date", "")) or datetime.now(UTC)
    return min(max((at - now).total_seconds(), 0.0), MAX_RETRY_AFTER_SECONDS)


def parse_date(value: str) -> datetime | None:
    """The date of a header, in UTC unless it names another zone."""
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
