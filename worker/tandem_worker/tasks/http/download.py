"""`http.download`: a body of any size, over as many connections as it takes.

After a broken connection the rest is requested with Range, and If-Range makes sure that it belongs
to the same representation (RFC 9110, 13.1.5 and 14). Without a validator for that, the attempt
fails.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Annotated

import aiohttp
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from tandem_shared.files.headers import disposition_names
from tandem_shared.files.names import name_problem
from tandem_worker.connectors.http.client import call_failed, display
from tandem_worker.errors import Permanent, TaskError
from tandem_worker.jobs.deadline import call_timeout
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.task import task
from tandem_worker.tasks.http.payloads import HeadersWithoutRange, Url, sent_headers
from tandem_worker.tasks.http.responses import (
    header_text,
    parse_date,
    unexpected_status,
)
from tandem_worker.tasks.payload import Payload

DEFAULT_MAX_BYTES = 10 << 30
MAX_BYTES = 64 << 30  # that a payload may ask for: the most that a remote store accepts in parts
STALL_TIMEOUT_SECONDS = 60.0  # without a byte, after which a connection counts as broken
MAX_FAILURES = 5  # in a row, without a new byte in between
FIRST_PAUSE_SECONDS = 0.2  # before the rest is requested; doubles with each failure in a row
MAX_RESTARTS = 3  # because the URL returns something else
REPORT_BYTES = 4 << 20  # between two progress reports

_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)")
_CONTENT_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}")


def _check_name(value: str) -> str:
    problem = name_problem(value)
    if problem is not None:
        raise ValueError(f"the name {problem}")
    return value


DownloadName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=700,
        json_schema_extra={"not": {"pattern": r"(^|/)\.{0,2}(/|$)|[\u0000-\u001f\u007f\\]"}},
    ),
    AfterValidator(_check_name),
]


class HttpDownload(Payload):
    """The payload of `http.download`."""

    url: Url
    headers: HeadersWithoutRange = Field(
        None, description="except those that belong to the connection, and Range and If-Range"
    )
    name: DownloadName | None = Field(
        None, description="of the file; default: from the response or the URL"
    )
    max_bytes: Annotated[
        int, Field(ge=0, le=MAX_BYTES, description="a larger file fails the job as too_large")
    ] = DEFAULT_MAX_BYTES
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = Field(
        None, description="that the file must have, in hexadecimal"
    )


class HttpDownloaded(TypedDict):
    """The result of `http.download`."""

    file: FileRef
    status: int


@task(
    "http.download",
    timeout="10m",
    example={"url": "https://example.org/data/rows.csv", "max_bytes": 100_000_000},
)
async def download(job: Job, payload: HttpDownload) -> HttpDownloaded:
    """Download a URL to the file store, resuming after a broken connection if the server can."""
    async with AsyncExitStack() as connection:
        body = _Download(job, payload, connection)
        await body.start()
        name = payload.name or body.name
        file = await _store(job, body, name, payload.max_bytes)
        if payload.sha256 is not None and file.sha256 != payload.sha256.lower():
            message = f"{name} has the sha256 {file.sha256}, not {payload.sha256.lower()}"
            # Retry only if the body came without its length: it may have been cut off.
            raise TaskError("sha256_mismatch", message, retryable=body.total is None)
        await job.progress(body.received, body.received)
        status = body.response.status
        return {"file": file, "status": 200 if status == 206 else status}


class _Changed(Exception):
    """What was received is void: the URL returns something else now, or no ranges."""


class _Download:
    """The body of a URL. `response` is the newest one; `received` and `total` count bytes."""

    response: aiohttp.ClientResponse

    def __init__(self, job: Job, payload: HttpDownload, connection: AsyncExitStack) -> None:
        self.received = 0
        self.total: int | None = None
        self._job, self._url, self._limit = job, payload.url, payload.max_bytes
        self._headers = sent_headers(job, payload.headers)
        # In a compressed body, positions would not be those of the stored bytes.
        self._headers["Accept-Encoding"] = "identity"
        self._connection = connection
        self._validator: str | None = None
        self._failures = 0  # in a row

    @property
    def name(self) -> str:
        """The file's name, from Content-Disposition or the end of the URL."""
        header = header_text(self.response.headers.get("Content-Disposition", ""))
        for given in (*disposition_names(header), self.response.url.name):
            name = (given or "").replace("\\", "/").rpartition("/")[2].strip()
            if name and name_problem(name) is None:
                return name
        return "download"

    @property
    def content_type(self) -> str | None:
        value = self.response.headers.get("Content-Type", "").partition(";")[0].strip()
        return value if _CONTENT_TYPE.fullmatch(value) else None

    async def start(self) -> None:
        """Request the whole body. Raises TaskError, `too_large` by the declared length."""
        await self._request()
        self._begin()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The rest of the body. Raises _Changed, or TaskError if it cannot be resumed."""
        while True:
            try:
                while chunk := await self._chunk():
                    self._failures = 0
                    self.received += len(chunk)
                    yield chunk
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                failure = call_failed(error, self.response.url, None, repeatable=True)
            except TimeoutError:
                where, seconds = display(self.response.url), STALL_TIMEOUT_SECONDS
                message = f"no response from {where}: no byte for {seconds:g} s"
                failure = TaskError("connection_failed", message, retryable=True)
            else:
                return
            if self.received == self.total:
                return
            await self._resume(failure)

    async def _chunk(self) -> bytes:
        async with asyncio.timeout(STALL_TIMEOUT_SECONDS):
            return await self.response.content.readany()

    async def _resume(self, failure: TaskError) -> None:
        while True:
            # With Retry-After (`after`), the next attempt continues at that time.
            if (
                self._validator is None
                or not failure.retryable
                or failure.after is not None
                or self._failures >= MAX_FAILURES
            ):
                raise failure
            await asyncio.sleep(FIRST_PAUSE_SECONDS * 2.0**self._failures * random.random())
            self._failures += 1
            try:
                await self._request(
                    {"Range": f"bytes={self.received}-", "If-Range": self._validator}
                )
                if self._continues():
                    return
                if self.response.status == 416:
                    # The body is shorter than what was received, so it is another one.
                    await self._request()
                self._begin()
            except TaskError as error:
                failure = error
            else:
                raise _Changed

    async def _request(self, more: dict[str, str] | None = None) -> None:
        await self._connection.aclose()  # the previous connection
        call = self._job.http.request(
            "GET",
            self._url,
            headers={**self._headers, **(more or {})},
            timeout=call_timeout(self._job),
        )
        self.response = await self._connection.enter_async_context(call)

    def _begin(self) -> None:
        """Take the response as the whole body, from its first byte."""
        headers = self.response.headers
        if self.response.status == 206 or not 200 <= self.response.status < 300:
            raise unexpected_status("GET", self.response, repeatable=True)
        plain = headers.get("Content-Encoding", "identity").strip().lower() in ("", "identity")
        self.received = 0
        self.total = self.response.content_length if plain else None
        self._validator = _validator(self.response) if plain else None
        if self.total is not None and self.total > self._limit:
            where = display(self.response.url)
            message = f"{where} has {self.total} bytes, max_bytes is {self._limit}"
            raise Permanent("too_large", message)

    def _continues(self) -> bool:
        """Whether the response continues the body. Raises TaskError if it is another part."""
        if self.response.status != 206:
            return False
        match = _CONTENT_RANGE.fullmatch(self.response.headers.get("Content-Range", "").strip())
        same = (
            match is not None
            and int(match[1]) == self.received
            and match[2] in ("*", str(self.total or match[2]))
        )
        etag = self.response.headers.get("ETag", "")
        strong = (self._validator or "").startswith('"')
        if not same or (etag and strong and etag != self._validator):
            message = f"{display(self.response.url)} returned another range than the requested one"
            raise TaskError("bad_response", message, retryable=True)
        return True


def _validator(response: aiohttp.ClientResponse) -> str | None:
    """The value for If-Range: a strong ETag, or a date at least a second before the response's."""
    etag = response.headers.get("ETag", "").strip()
    if re.fullmatch(r'"[^"]*"', etag):
        return etag
    modified = response.headers.get("Last-Modified", "").strip()
    sent_at, modified_at = parse_date(response.headers.get("Date", "")), parse_date(modified)
    if etag or sent_at is None or modified_at is None:
        return None
    return modified if sent_at - modified_at >= timedelta(seconds=1) else None


async def _store(job: Job, body: _Download, name: str, limit: int) -> FileRef:
    content_type = body.content_type
    for _ in range(MAX_RESTARTS + 1):
        try:
            return await job.files.write(name, _reported(job, body), content_type, limit=limit)
        except _Changed:
            job.log.info("the download starts over: the URL returns something else, or no ranges")
    message = f"{name} broke off and changed {MAX_RESTARTS + 1} times"
    raise TaskError("connection_failed", message, retryable=True)


async def _reported(job: Job, body: _Download) -> AsyncIterator[bytes]:
    reported = 0
    await job.progress(0, body.total)
    async for piece in body.pieces():
        yield piece
        if body.received - reported >= REPORT_BYTES:
            reported = body.received
            await job.progress(reported, body.total)
