"""What the payloads of the HTTP tasks share: URLs and headers. The API checks their schemas."""

import re
from typing import Annotated

from multidict import CIMultiDict
from pydantic import AfterValidator, Field, WithJsonSchema

from tandem_worker.connectors.http.client import url_problem
from tandem_worker.connectors.http.urls import parse_url
from tandem_worker.jobs.job import Job

# Headers of the connection, of proxies, and those that open a cloud's metadata service.
_FORBIDDEN = (
    "host content-length transfer-encoding connection te trailer upgrade keep-alive expect"
    " http2-settings forwarded via metadata metadata-flavor x-google-metadata-request"
).split()
_FORBIDDEN_PREFIXES = ("proxy-", "x-forwarded-", "x-metadata-", "x-aws-ec2-metadata-token")


def _any_of(*words: str, prefixes: tuple[str, ...] = ()) -> str:
    patterns = [*map(_any_case, words), *(f"{_any_case(prefix)}.*" for prefix in prefixes)]
    return f"^({'|'.join(patterns)})$"


def _any_case(word: str) -> str:
    # Regular expressions in schemas have no flag for this that all engines support.
    return "".join(f"[{letter.upper()}{letter}]" if letter.isalpha() else letter for letter in word)


# Patterns of names, each with the message that the API shows for it.
_NOT_ALLOWED = (
    _any_of(*_FORBIDDEN, prefixes=_FORBIDDEN_PREFIXES),
    "cannot be set: it is for connections, proxies or metadata services",
)
_RANGE = (
    _any_of("range", "if-range"),
    "cannot be set: the task asks for ranges when it needs them",
)
_NAME = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"
_VALUE = r"^[^\u0000-\u0008\u000a-\u001f\u007f]*$"
_URL = r"^[Hh][Tt][Tt][Pp][Ss]?://[^/?#@\\\u0000-\u0020\u007f]+([/?#][^\u0000-\u001f\u007f]*)?$"


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


def _validator(*refused: tuple[str, str]) -> AfterValidator:
    def check(headers: dict[str, str] | None) -> dict[str, str] | None:
        for name, value in (headers or {}).items():
            if not re.fullmatch(_NAME, name):
                raise ValueError(f"{name!r} is not a header name")
            for names, why in refused:
                if re.fullmatch(names, name):
                    raise ValueError(f"{name} {why}")
            if not re.fullmatch(_VALUE, value):
                raise ValueError(f"the value of {name} has a control character")
        return headers

    return AfterValidator(check)


def _check_url(value: str) -> str:
    problem = url_problem(parse_url(value))
    if problem is not None:
        raise ValueError(problem)
    return value


Url = Annotated[
    str,
    Field(
        pattern=_URL,
        max_length=8192,
        description="http or https, without user or password",
        json_schema_extra={
            "errorMessage": "must be a URL that begins with http:// or https://, without a user or"
            " password, such as https://example.org/"
        },
    ),
    AfterValidator(_check_url),
]
Headers = Annotated[dict[str, str] | None, _validator(_NOT_ALLOWED), _schema(_NOT_ALLOWED)]
HeadersWithoutRange = Annotated[
    dict[str, str] | None, _validator(_NOT_ALLOWED, _RANGE), _schema(_NOT_ALLOWED, _RANGE)
]


def sent_headers(job: Job, headers: dict[str, str] | None) -> CIMultiDict[str]:
    """The payload's headers, and the job's trace unless they have another."""
    sent: CIMultiDict[str] = CIMultiDict(headers or {})
    if job.traceparent is not None:
        sent.setdefault("traceparent", job.traceparent)
    return sent
