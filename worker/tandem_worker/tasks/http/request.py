"""One HTTP call as a payload describes it, and what its response is as a result."""

import re
import time
from base64 import b64encode
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Annotated, Any, Literal, NotRequired

import aiohttp
import msgspec
from multidict import CIMultiDict
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from typing_extensions import TypedDict
from yarl import URL

from tandem_shared.files.names import OCTET_STREAM
from tandem_worker.connectors.http.client import MAX_BYTES, SAFE, Body, shown, unusable
from tandem_worker.errors import Permanent, TaskError
from tandem_worker.jobs.deadline import call_timeout
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.task import task

MOST_BYTES = 16 << 20  # that a payload may ask for: the response is held in memory
TOGETHER = 64 << 20  # bytes of all responses of one job
LONGEST_WAIT = 7 * 86400.0  # seconds of Retry-After that are obeyed: a job is not known longer

# Statuses after which the same request may well succeed.
_PASSING = frozenset({408, 425, 429})

# What belongs to the connection, speaks for a proxy, or opens a cloud's metadata service.
_FORBIDDEN = (
    *(
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "expect",
    ),
    *(
        "http2-settings",
        "forwarded",
        "via",
        "metadata",
        "metadata-flavor",
        "x-google-metadata-request",
    ),
)
_FORBIDDEN_FAMILIES = ("proxy-", "x-forwarded-", "x-metadata-", "x-aws-ec2-metadata-token")


def _any_case(word: str) -> str:
    # The schemas are read by engines of several languages, which have no common flag for it.
    return "".join(f"[{letter.upper()}{letter}]" if letter.isalpha() else letter for letter in word)


# What the API answers where its own check of the schema refuses: the same sentences.
_HEADER_REFUSED = "cannot be set: it is for connections, proxies or metadata services"
_RANGE_REFUSED = "cannot be set: ranges are asked for where they are needed"
_BODIES_REFUSED = "give one of json, body and body_file"

_NAME = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"


def _any_of(*words: str, families: tuple[str, ...] = ()) -> str:
    return (
        "^("
        + "|".join([*map(_any_case, words), *(f"{_any_case(family)}.*" for family in families)])
        + ")$"
    )


_NOT_ALLOWED = _any_of(*_FORBIDDEN, families=_FORBIDDEN_FAMILIES)
_RANGES = _any_of("range", "if-range")
_VALUE = r"^[^\u0000-\u0008\u000a-\u001f\u007f]*$"
_URL = r"^[Hh][Tt][Tt][Pp][Ss]?://[^/?#@\\\u0000-\u0020\u007f]+([/?#][^\u0000-\u001f\u007f]*)?$"
_STATUS = r"^[1-5]([xX][xX]|[0-9][0-9](-[1-5][0-9][0-9])?)$"


def _schema(*refused: tuple[str, str]) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "type": ["object", "null"],
            "maxProperties": 100,
            "propertyNames": {
                "pattern": _NAME,
                "allOf": [
                    {"not": {"pattern": names, "description": why}} for names, why in refused
                ],
            },
            "additionalProperties": {"type": "string", "maxLength": 8192, "pattern": _VALUE},
        }
    )


def _plain_headers(value: dict[str, str] | None) -> dict[str, str] | None:
    for name, text in (value or {}).items():
        if not re.fullmatch(_NAME, name):
            raise ValueError(f"{name!r} is no header name")
        if re.fullmatch(_NOT_ALLOWED, name):
            raise ValueError(f"{name} {_HEADER_REFUSED}")
        if not re.fullmatch(_VALUE, text):
            raise ValueError(f"the value of {name} has a control character")
    return value


def _no_ranges(value: dict[str, str] | None) -> dict[str, str] | None:
    for name in value or {}:
        if re.fullmatch(_RANGES, name):
            raise ValueError(f"{name} {_RANGE_REFUSED}")
    return value


def _callable(value: str) -> str:
    problem = unusable(URL(value))
    if problem is not None:
        raise ValueError(problem)
    return value


Url = Annotated[
    str,
    Field(pattern=_URL, max_length=8192, description="http or https, without user or password"),
    AfterValidator(_callable),
]
Headers = Annotated[
    dict[str, str] | None, AfterValidator(_plain_headers), _schema((_NOT_ALLOWED, _HEADER_REFUSED))
]
# For what asks for ranges itself.
WholeHeaders = Annotated[
    dict[str, str] | None,
    AfterValidator(_plain_headers),
    AfterValidator(_no_ranges),
    _schema((_NOT_ALLOWED, _HEADER_REFUSED), (_RANGES, _RANGE_REFUSED)),
]
Scalar = str | int | float | bool | None


_SET = {"not": {"type": "null"}}
_AT_MOST_ONE: list[Any] = [
    {
        "not": {
            "required": [one, other],
            "properties": {one: _SET, other: _SET},
            "description": _BODIES_REFUSED,
        }
    }
    for one, other in (("json", "body"), ("json", "body_file"), ("body", "body_file"))
]


class HttpRequest(BaseModel):
    """What `http.request` takes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"allOf": _AT_MOST_ONE}
    )

    url: Url
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] = "GET"
    headers: Headers = Field(None, description="without those that belong to the connection")
    params: dict[str, Scalar | list[Scalar]] | None = Field(
        None, description="added to the URL's query"
    )
    json_: Any = Field(None, alias="json", description="sent as application/json")
    body: str | None = Field(None, description="sent as UTF-8")
    body_file: FileRef | None = Field(None, description="a file, streamed")
    follow_redirects: Annotated[
        bool, Field(description="at most 10; credentials go to the first origin only")
    ] = True
    expect_status: Annotated[
        list[Annotated[int, Field(ge=100, le=599)] | Annotated[str, Field(pattern=_STATUS)]],
        Field(min_length=1, max_length=100, description='such as 204, "404", "2xx", "200-299"'),
    ] = ["2xx"]
    max_bytes: Annotated[
        int, Field(ge=0, le=MOST_BYTES, description="of the response, decompressed")
    ] = MAX_BYTES
    retry_unsafe: Annotated[
        bool,
        Field(
            description="retry POST, PUT, PATCH and DELETE too; an Idempotency-Key header does as well"
        ),
    ] = False

    @model_validator(mode="after")
    def _one_body(self) -> "HttpRequest":
        if sum(one is not None for one in (self.json_, self.body, self.body_file)) > 1:
            raise ValueError(_BODIES_REFUSED)
        return self


class HttpResult(TypedDict):
    """What `http.request` gives: of `json`, `text` and `base64` the first that the response can be."""

    status: int
    headers: dict[str, str]
    url: str
    elapsed_ms: float
    json: NotRequired[Any]
    text: NotRequired[str]
    base64: NotRequired[str]


class Room:
    """How much the responses of one job may hold together; more is `too_large` and ends the job."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._left = TOGETHER

    @property
    def full(self) -> bool:
        return self._left < 0

    def take(self, size: int) -> None:
        self._left -= size
        if self.full:
            raise Permanent(
                "too_large", f"{self._what} have more than {TOGETHER >> 20} MiB together"
            )


def sent_headers(job: Job, headers: dict[str, str] | None) -> CIMultiDict[str]:
    """What the payload says, and the job's trace unless it has one of its own."""
    sent: CIMultiDict[str] = CIMultiDict(headers or {})
    if job.traceparent is not None:
        sent.setdefault("traceparent", job.traceparent)
    return sent


async def call(
    job: Job, payload: HttpRequest, *, timeout: float, room: Room | None = None
) -> HttpResult:
    """Make the call and read the response, in at most `timeout` seconds; `room` is for all calls of the job together.

    Raises TaskError, for a status that is not expected as well.
    """
    began = time.monotonic()
    headers = sent_headers(job, payload.headers)
    body: Body | None = None
    kind = None
    if payload.body is not None:
        body, kind = payload.body.encode(), "text/plain; charset=utf-8"
    elif payload.body_file is not None:
        # Asked first: a file that is not there must not look like a connection that broke.
        file = await job.files.stat(payload.body_file)
        body, kind = partial(job.files.open, file), file.content_type or OCTET_STREAM
        headers["Content-Length"] = str(file.size)
    if kind is not None:
        headers.setdefault("Content-Type", kind)
    async with job.http.request(
        payload.method,
        payload.url,
        headers=headers,
        params=payload.params,
        json=payload.json_,
        body=body,
        follow_redirects=payload.follow_redirects,
        timeout=timeout,
        retry_unsafe=payload.retry_unsafe,
    ) as response:
        if not _expected(response.status, payload.expect_status):
            repeatable = (
                payload.method in SAFE or payload.retry_unsafe or "Idempotency-Key" in headers
            )
            raise unexpected(payload.method, response, repeatable)
        data = await job.http.read(response, payload.max_bytes, None if room is None else room.take)
    result: HttpResult = {
        "status": response.status,
        "headers": _joined(response),
        "url": str(response.url.with_fragment(None)),
        "elapsed_ms": round((time.monotonic() - began) * 1000, 3),
    }
    _put(result, data, response)
    return result


def _expected(status: int, patterns: list[int | str]) -> bool:
    for pattern in map(str, patterns):
        low, _, high = pattern.lower().replace("xx", "00").partition("-")
        if pattern[1:].lower() == "xx":
            high = f"{pattern[0]}99"
        if int(low) <= status <= int(high or low):
            return True
    return False


def unexpected(method: str, response: aiohttp.ClientResponse, repeatable: bool) -> TaskError:
    """`http_status`; retryable where a repeat does no harm and may be answered otherwise."""
    status = response.status
    message = f"{method} {shown(response.url)} answered {status}"
    retryable = repeatable and (status in _PASSING or status >= 500)
    return TaskError(
        "http_status", message, retryable, after=retry_after(response) if retryable else None
    )


def retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3), from a number or from a date by the server's clock."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return min(float(value), LONGEST_WAIT)
    at = _date(value)
    if at is None:
        return None
    now = _date(response.headers.get("Date", "")) or datetime.now(UTC)
    return min(max((at - now).total_seconds(), 0.0), LONGEST_WAIT)


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _joined(response: aiohttp.ClientResponse) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in response.headers.items():
        key = name.lower()
        # Set-Cookie has commas in its dates (RFC 9110, 5.3).
        between = "\n" if key == "set-cookie" else ", "
        text = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        joined[key] = f"{joined[key]}{between}{text}" if key in joined else text
    return joined


_JSON = re.compile(r"application/json|text/json|.*\+json")
_TEXT = re.compile(
    r"text/.*|.*\+xml|application/(xml|javascript|ecmascript|x-www-form-urlencoded|yaml|toml|sql|graphql"
    r"|x-ndjson|ndjson|jsonl|x-jsonlines|json-seq|jwt)"
)


def _put(result: HttpResult, data: bytes, response: aiohttp.ClientResponse) -> None:
    """The body under the name of what it is: by its declared type, then by whether it can be read as that."""
    declared = response.content_type.lower() if "Content-Type" in response.headers else ""
    if _JSON.fullmatch(declared) and data:
        try:
            result["json"] = msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"))
            return
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # it says JSON and is none: then it is text
    if not declared or not data or _JSON.fullmatch(declared) or _TEXT.fullmatch(declared):
        try:
            text = data.decode(response.charset or "utf-8")
        except (UnicodeDecodeError, LookupError):
            pass
        else:
            if "\0" not in text:
                result["text"] = text
                return
    result["base64"] = b64encode(data).decode()


@task(
    "http.request",
    example={
        "url": "https://example.org/",
        "headers": {"Accept": "text/html"},
        "expect_status": ["2xx"],
    },
)
async def request(job: Job, payload: HttpRequest) -> HttpResult:
    """Call a URL and keep the response: status, headers and body.

    Header names of the result are in lower case; repeated ones are joined by ", ", Set-Cookie by a
    line feed.
    """
    return await call(job, payload, timeout=call_timeout(job))
