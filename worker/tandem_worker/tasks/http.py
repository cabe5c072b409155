"""HTTP tasks: `http.request`, `http.download`, `http.gather`, `http.race`, `http.webhook`."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any, Literal, NotRequired, cast

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, WithJsonSchema
from typing_extensions import TypedDict

from tandem_shared.errors import TandemError
from tandem_shared.files.names import refuse_name
from tandem_shared.jobs.ids import id_time
from tandem_shared.retry import RetryPolicy
from tandem_shared.times import DURATION_SCHEMA, Seconds
from tandem_worker import webhooks
from tandem_worker.calls import (
    HttpRequest,
    HttpResult,
    Room,
    Url,
    WholeHeaders,
    call,
    remaining,
    sent_headers,
    unexpected,
)
from tandem_worker.downloads import RESTARTS, Changed, Download, open_download
from tandem_worker.encoding import encode
from tandem_worker.errors import Permanent, TaskError
from tandem_worker.failures import Fault, fault
from tandem_worker.files import FileRef
from tandem_worker.job import Job, item_body
from tandem_worker.task import task

DOWNLOAD = 10 << 30  # bytes, if the payload does not say
LARGEST_DOWNLOAD = 64 << 30  # bytes that a payload may ask for: a remote store takes so many parts and no more
REPORT_EVERY = 4 << 20  # bytes
MOST_REQUESTS = 10_000
MOST_RUNNERS = 100
EACH = 30.0  # seconds for one of several requests
RACING = 20.0  # the same in a race: below the job's own 30 s, so that it ends by its requests and not by its timeout
MESSAGES = 10  # that the failure of a whole race repeats

Timeout = Annotated[
    Seconds,
    Field(gt=0, le=86400),
    WithJsonSchema(
        {
            "anyOf": [
                {**DURATION_SCHEMA["anyOf"][0], "exclusiveMinimum": 0, "maximum": 86400},
                DURATION_SCHEMA["anyOf"][1],
            ]
        }
    ),
]


@task(
    "http.request",
    example={"url": "https://example.org/", "headers": {"Accept": "text/html"}, "expect_status": ["2xx"]},
)
async def request(job: Job, payload: HttpRequest) -> HttpResult:
    """Call a URL and keep the response: status, headers and body.

    Header names of the result are in lower case; repeated ones are joined by ", ", Set-Cookie by a line feed.
    """
    return await call(job, payload, timeout=remaining(job))


# ------------------------------------------------------------------------------------------------------------ download


def _file_name(value: str) -> str:
    reason = refuse_name(value)
    if reason is not None:
        raise ValueError(f"the name {reason}")
    return value


FileName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=700,
        json_schema_extra={"not": {"pattern": r"(^|/)\.{0,2}(/|$)|[\u0000-\u001f\u007f\\]"}},
    ),
    AfterValidator(_file_name),
]


class HttpDownload(BaseModel):
    """What `http.download` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Url
    headers: WholeHeaders = Field(
        None, description="without those that belong to the connection, and without Range and If-Range"
    )
    name: FileName | None = Field(None, description="of the file; else as the server calls it, or as the URL ends")
    max_bytes: Annotated[int, Field(ge=0, le=LARGEST_DOWNLOAD, description="above, the job fails as too_large")] = (
        DOWNLOAD
    )
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = Field(None, description="the file's, in hex")


class HttpDownloaded(TypedDict):
    """What `http.download` gives."""

    file: FileRef
    status: int


@task(
    "http.download",
    timeout="10m",
    example={"url": "https://example.org/data/rows.csv", "max_bytes": 100_000_000},
)
async def download(job: Job, payload: HttpDownload) -> HttpDownloaded:
    """Download a URL to the file store. After a fault it goes on where it broke off, if the server can do that."""
    async with open_download(job, payload.url, sent_headers(job, payload.headers), payload.max_bytes) as body:
        name, kind = payload.name or body.name, body.content_type
        file = await _stored(job, body, name, kind, payload.max_bytes)
        if payload.sha256 is not None and file.sha256 != payload.sha256.lower():
            message = f"{name} has the sha256 {file.sha256}, not the one that was asked for"
            # A body that did not say its length may have been cut off; one that did came whole, and is another.
            raise TaskError("sha256_mismatch", message, retryable=body.total is None)
        await job.progress(body.received, body.received)
        return {"file": file, "status": 200 if body.response.status == 206 else body.response.status}


async def _stored(job: Job, body: Download, name: str, kind: str | None, limit: int) -> FileRef:
    for _ in range(RESTARTS + 1):
        try:
            return await job.files.write(name, _reported(job, body), kind, limit=limit)
        except Changed:
            job.log.info("the download starts over: the URL gives something else, or no ranges")
    raise TaskError("connection_failed", f"{name} broke off and changed {RESTARTS + 1} times", retryable=True)


async def _reported(job: Job, body: Download) -> AsyncIterator[bytes]:
    told = 0
    await job.progress(0, body.total)
    async for piece in body.pieces():
        yield piece
        if body.received - told >= REPORT_EVERY:
            told = body.received
            await job.progress(told, body.total)


# -------------------------------------------------------------------------------------------------------- gather, race


class HttpGather(BaseModel):
    """What `http.gather` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: Annotated[list[HttpRequest], Field(max_length=MOST_REQUESTS, description="payloads of http.request")]
    concurrency: Annotated[int, Field(ge=1, le=MOST_RUNNERS, description="requests under way at once")] = 10
    timeout: Annotated[Timeout, Field(description="of each request")] = EACH
    on_error: Annotated[
        Literal["collect", "fail"], Field(description="collect failures among the results, or fail with the first")
    ] = "collect"


class HttpProblem(TypedDict):
    """Why a request failed, as a job's `error` says it."""

    type: str
    message: str
    retryable: bool


class HttpGatheredItem(TypedDict):
    """One of `http.gather`: what `http.request` gives, or `error`."""

    ok: bool
    index: int
    error: NotRequired[HttpProblem]
    status: NotRequired[int]
    headers: NotRequired[dict[str, str]]
    url: NotRequired[str]
    elapsed_ms: NotRequired[float]
    json: NotRequired[Any]
    text: NotRequired[str]
    base64: NotRequired[str]


class HttpGathered(TypedDict):
    """What `http.gather` gives, in the order of the requests."""

    results: list[HttpGatheredItem]


@task(
    "http.gather",
    timeout="10m",
    example={
        "requests": [{"url": "https://example.org/a"}, {"url": "https://example.org/b"}],
        "concurrency": 10,
        "on_error": "collect",
    },
)
async def gather(job: Job, payload: HttpGather) -> HttpGathered:
    """Make many requests, some at a time. Each result is streamed as it lands; none is tried twice."""
    total = len(payload.requests)
    bodies, results = Room("the responses"), Room("the results")
    waiting = iter(enumerate(payload.requests))
    landed: list[bytes] = [b""] * total
    done = 0

    async def run() -> None:
        nonlocal done
        for index, one in waiting:
            try:
                item = item_body(
                    {"ok": True, "index": index, **await call(job, one, timeout=payload.timeout, room=bodies)}
                )
            except (TaskError, TandemError) as error:
                what = fault(error)
                if bodies.full or payload.on_error == "fail":
                    raise TaskError(what.type, f"request {index}: {what.message}", retryable=False) from error
                item = encode({"ok": False, "index": index, "error": _problem(what)})
            results.take(len(item))
            landed[index] = item
            done += 1
            await job.emit(msgspec.Raw(item))
            await job.progress(done, total)

    await job.progress(0, total)
    await _together(run, min(payload.concurrency, total))
    # What was encoded once need not be decoded to be encoded again.
    return cast("HttpGathered", msgspec.Raw(b'{"results":[' + b",".join(landed) + b"]}"))


def _problem(what: Fault) -> HttpProblem:
    return {"type": what.type, "message": what.message, "retryable": what.retryable}


async def _together(run: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """`count` runners; the first one that fails ends the others, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(run())
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None


class HttpRace(BaseModel):
    """What `http.race` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: Annotated[
        list[HttpRequest], Field(min_length=1, max_length=MOST_RUNNERS, description="payloads of http.request")
    ]
    timeout: Annotated[Timeout, Field(description="of each request")] = RACING


class HttpRaced(HttpResult):
    """What `http.race` gives: the first success and its place among the requests."""

    index: int


@task(
    "http.race",
    example={"requests": [{"url": "https://a.example.org/"}, {"url": "https://b.example.org/"}]},
)
async def race(job: Job, payload: HttpRace) -> HttpRaced:
    """Make some requests at once and keep the first success; the others are cancelled. None is tried twice."""
    room = Room("the responses")
    total = len(payload.requests)
    failures: dict[int, Fault] = {}
    running = {
        asyncio.create_task(call(job, one, timeout=payload.timeout, room=room)): index
        for index, one in enumerate(payload.requests)
    }
    try:
        pending = set(running)
        await job.progress(0, total)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for one in sorted(done, key=running.__getitem__):
                error = one.exception()
                if error is None:
                    return {**one.result(), "index": running[one]}
                if room.full or not isinstance(error, TaskError | TandemError):
                    raise error
                failures[running[one]] = fault(error)
            await job.progress(len(failures), total)
    finally:
        for one in running:
            one.cancel()
        # Cancelled, each closes its connection.
        await asyncio.gather(*running, return_exceptions=True)
    shown = "; ".join(f"request {index}: {failures[index].message}" for index in sorted(failures)[:MESSAGES])
    raise TaskError("all_failed", f"none of {total} requests succeeded: {shown}", retryable=False)


# ------------------------------------------------------------------------------------------------------------- webhook


def _secret(value: SecretStr) -> SecretStr:
    webhooks.key(value.get_secret_value())
    return value


Secret = Annotated[
    SecretStr,
    AfterValidator(_secret),
    WithJsonSchema({"type": "string", "pattern": webhooks.SECRET, "writeOnly": True}),
]
_WORD = r"^[^\u0000-\u001f\u007f]+$"


class HttpWebhook(BaseModel):
    """What `http.webhook` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: Url
    type: Annotated[str, Field(pattern=_WORD, max_length=256, description="of the event, such as order.paid")]
    data: Annotated[Any, Field(description="of the event")]
    secret: Secret | None = Field(
        None, description="whsec_ and the base64 of 24 to 64 bytes; without it the event is not signed"
    )
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$", max_length=128)] | None = Field(
        None, description="of the event and its webhook-id, the same in every attempt; else the job's id and the type"
    )
    subject: Annotated[str, Field(pattern=_WORD, max_length=256)] | None = Field(
        None, description="of the event; else the job's id"
    )


class HttpDelivered(TypedDict):
    """What `http.webhook` gives."""

    status: int


@task(
    "http.webhook",
    retry=RetryPolicy(max_attempts=10),
    example={"url": "https://example.org/hook", "type": "order.paid", "data": {"order": 4711}},
)
async def webhook(job: Job, payload: HttpWebhook) -> HttpDelivered:
    """Deliver an event: CloudEvents 1.0, signed as Standard Webhooks says.

    Any 2xx is a delivery. A redirect fails at once, 410 as `gone`; everything else is tried again.
    """
    now = time.time()
    event = payload.id or "".join(c if c.isascii() and c.isalnum() else "-" for c in f"{job.id}-{payload.type}")[:128]
    body = webhooks.event(
        id=event,
        type=payload.type,
        source=f"/v1/jobs/{job.id}",
        subject=payload.subject or job.id,
        time=id_time(job.id) or now,
        data=payload.data,
    )
    secret = None if payload.secret is None else webhooks.key(payload.secret.get_secret_value())
    headers = sent_headers(job, webhooks.headers(event, int(now), body, secret))
    async with job.http.request(
        "POST",
        payload.url,
        headers=headers,
        body=body,
        follow_redirects=False,
        timeout=remaining(job),
        retry_unsafe=True,  # its id tells the receiver what is a repeat
    ) as response:
        status = response.status
        if 200 <= status < 300:
            return {"status": status}
        refused = unexpected("POST", response, repeatable=True)
        if status == 410:
            raise Permanent("gone", refused.message)
        raise TaskError(refused.type, refused.message, retryable=status >= 400, after=refused.after)
