"""`http.request`, and the call that `http.gather` and `http.race` make, too."""

import time
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from tandem_shared.files.names import OCTET_STREAM
from tandem_worker.connectors.http.client import DEFAULT_MAX_BYTES, SAFE_METHODS, Body
from tandem_worker.jobs.deadline import call_timeout
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.task import task
from tandem_worker.tasks.http.payloads import Headers, Url, sent_headers
from tandem_worker.tasks.http.responses import (
    ByteBudget,
    ResponseBody,
    decode_body,
    joined_headers,
    unexpected_status,
)
from tandem_worker.tasks.payload import Payload

MAX_RESPONSE_BYTES = 16 << 20  # that a payload may ask for: the response is held in memory
_STATUS = r"^[1-5]([xX][xX]|[0-9][0-9](-[1-5][0-9][0-9])?)$"
# The API shows this message, too.
_ONE_BODY = "give one of json, body and body_file"
_SET = {"not": {"type": "null"}}
_AT_MOST_ONE: list[Any] = [
    {
        "not": {
            "required": [one, other],
            "properties": {one: _SET, other: _SET},
            "description": _ONE_BODY,
        }
    }
    for one, other in (("json", "body"), ("json", "body_file"), ("body", "body_file"))
]

Scalar = str | int | float | bool | None


class HttpRequest(Payload):
    """The payload of `http.request`."""

    model_config = ConfigDict(json_schema_extra={"allOf": _AT_MOST_ONE})

    url: Url
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] = "GET"
    headers: Headers = Field(None, description="except those that belong to the connection")
    params: dict[str, Scalar | list[Scalar]] | None = Field(
        None, description="added to the URL's query"
    )
    json_: Any = Field(None, alias="json", description="sent as application/json")
    body: str | None = Field(None, description="sent as UTF-8")
    body_file: FileRef | None = Field(None, description="a file, streamed")
    follow_redirects: Annotated[
        bool, Field(description="at most 10; credentials are sent to the first origin only")
    ] = True
    expect_status: list[
        Annotated[int, Field(ge=100, le=599)] | Annotated[str, Field(pattern=_STATUS)]
    ] = Field(
        ["2xx"],
        min_length=1,
        max_length=100,
        description='such as 204, "404", "2xx", "200-299"',
    )
    max_bytes: Annotated[
        int, Field(ge=0, le=MAX_RESPONSE_BYTES, description="of the response, decompressed")
    ] = DEFAULT_MAX_BYTES
    retry_unsafe: Annotated[
        bool,
        Field(
            description="also retry POST, PUT, PATCH and DELETE, as with an Idempotency-Key header"
        ),
    ] = False

    @model_validator(mode="after")
    def _one_body(self) -> "HttpRequest":
        if sum(body is not None for body in (self.json_, self.body, self.body_file)) > 1:
            raise ValueError(_ONE_BODY)
        return self


class HttpResult(ResponseBody):
    """The result of `http.request`, with the first of json, text and base64 that fits the body."""

    status: int
    headers: dict[str, str]
    url: str
    elapsed_ms: float


@task(
    "http.request",
    example={
        "url": "https://example.org/",
        "headers": {"Accept": "text/html"},
        "expect_status": ["2xx"],
    },
)
async def request(job: Job, payload: HttpRequest) -> HttpResult:
    """Call a URL and return the response: status, headers and body.

    Header names are in lower case; repeated headers are joined by ", ", Set-Cookie by a line feed.
    """
    return await call(job, payload, timeout=call_timeout(job))


async def call(
    job: Job, payload: HttpRequest, *, timeout: float, budget: ByteBudget | None = None
) -> HttpResult:
    """Make the call and read the response within `timeout` seconds and the job's `budget`.

    Raises TaskError, also for an unexpected status.
    """
    began = time.monotonic()
    headers = sent_headers(job, payload.headers)
    body: Body | None = None
    content_type = None
    if payload.body is not None:
        body, content_type = payload.body.encode(), "text/plain; charset=utf-8"
    elif payload.body_file is not None:
        # Look it up first: a missing file must not look like a broken connection.
        file = await job.files.stat(payload.body_file)
        body, content_type = partial(job.files.open, file), file.content_type or OCTET_STREAM
        headers["Content-Length"] = str(file.size)
    if content_type is not None:
        headers.setdefault("Content-Type", content_type)
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
            safe = payload.method in SAFE_METHODS
            repeatable = safe or payload.retry_unsafe or "Idempotency-Key" in headers
            raise unexpected_status(payload.method, response, repeatable=repeatable)
        on_bytes = None if budget is None else budget.take
        data = await job.http.read(response, payload.max_bytes, on_bytes)
    return {
        "status": response.status,
        "headers": joined_headers(response),
        "url": str(response.url.with_fragment(None)),
        "elapsed_ms": round((time.monotonic() - began) * 1000, 3),
        **decode_body(response, data),
    }


def _expected(status: int, patterns: list[int | str]) -> bool:
    for pattern in map(str, patterns):
        low, _, high = pattern.lower().replace("xx", "00").partition("-")
        if pattern[1:].lower() == "xx":
            high = f"{pattern[0]}99"
        if int(low) <= status <= int(high or low):
            return True
    return False
