"""A body that is too large to begin again: read over as many connections as it takes.

After a fault the rest is asked for by Range, and If-Range sees to it that it is the rest of the
same thing (RFC 9110,
13.1.5 and 14). Without a validator that can say so, a fault is the attempt's failure.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Annotated

import aiohttp
from multidict import CIMultiDict
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from tandem_shared.files.names import name_problem
from tandem_worker.connectors.http.client import failure, shown
from tandem_worker.errors import Permanent, TaskError
from tandem_worker.jobs.deadline import call_timeout
from tandem_worker.jobs.files import FileRef
from tandem_worker.jobs.job import Job
from tandem_worker.task import task
from tandem_worker.tasks.http.request import Url, WholeHeaders, sent_headers, unexpected

STALL = 60.0  # seconds without a byte after which a connection counts as broken
FAULTS = 5  # in a row, without a new byte between them
PAUSE = 0.2  # seconds before the rest is asked for, twice as long with each fault in a row
RESTARTS = 3  # times that what is at the URL may change meanwhile

_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)")
_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}")


class Changed(Exception):
    """What has come is worth nothing: the URL gives something else now, or no ranges. `pieces` begins anew."""


class Download:
    """The body of a URL. `response` is the newest one, `received` and `total` count bytes."""

    response: aiohttp.ClientResponse

    def __init__(
        self, job: Job, url: str, headers: CIMultiDict[str], limit: int, connection: AsyncExitStack
    ) -> None:
        self.received = 0
        self.total: int | None = None
        self._job, self._url, self._limit = job, url, limit
        self._headers = headers.copy()
        # Compressed on the way, a byte's number would not be its place in what is stored.
        self._headers["Accept-Encoding"] = "identity"
        self._connection = connection
        self._validator: str | None = None
        self._faults = 0  # in a row

    @property
    def name(self) -> str:
        """What to call it: as the server says, or as the URL ends."""
        said = Message()
        said["Content-Disposition"] = _text(self.response.headers.get("Content-Disposition", ""))
        for given in (said.get_filename(), self.response.url.name):
            name = (given or "").replace("\\", "/").rpartition("/")[2].strip()
            if name and name_problem(name) is None:
                return name
        return "download"

    @property
    def content_type(self) -> str | None:
        value = self.response.headers.get("Content-Type", "").partition(";")[0].strip()
        return value if _TYPE.fullmatch(value) else None

    async def start(self) -> None:
        """Ask for all of it. Raises TaskError."""
        await self._ask()
        self._begin()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The rest of the body. Raises Changed, and TaskError for a fault that cannot be mended."""
        while True:
            try:
                while chunk := await self._chunk():
                    self._faults = 0
                    self.received += len(chunk)
                    yield chunk
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
                fault = failure(error, self.response.url, None, repeatable=True)
            except TimeoutError:
                message = (
                    f"no response from {shown(self.response.url)}: nothing came for {STALL:g} s"
                )
                fault = TaskError("connection_failed", message, retryable=True)
            else:
                return
            if self.received == self.total:
                return
            await self._resume(fault)

    async def _chunk(self) -> bytes:
        async with asyncio.timeout(STALL):
            return await self.response.content.readany()

    async def _resume(self, fault: TaskError) -> None:
        while True:
            # A server that says when to come back is obeyed by the attempt that follows.
            if (
                self._validator is None
                or not fault.retryable
                or fault.after is not None
                or self._faults >= FAULTS
            ):
                raise fault
            await asyncio.sleep(PAUSE * 2.0**self._faults * random.random())
            self._faults += 1
            try:
                await self._ask({"Range": f"bytes={self.received}-", "If-Range": self._validator})
                if self._continues():
                    return
                if self.response.status == 416:
                    # Shorter than what has come, so it is something else.
                    await self._ask()
                self._begin()
            except TaskError as error:
                fault = error
            else:
                raise Changed

    async def _ask(self, more: dict[str, str] | None = None) -> None:
        await self._connection.aclose()  # the connection before
        call = self._job.http.request(
            "GET",
            self._url,
            headers={**self._headers, **(more or {})},
            timeout=call_timeout(self._job),
        )
        self.response = await self._connection.enter_async_context(call)

    def _begin(self) -> None:
        """The response in hand is the whole body, from its first byte."""
        headers = self.response.headers
        if self.response.status == 206 or not 200 <= self.response.status < 300:
            raise unexpected("GET", self.response, repeatable=True)
        plain = headers.get("Content-Encoding", "identity").strip().lower() in ("", "identity")
        self.received = 0
        self.total = self.response.content_length if plain else None
        self._validator = _validator(self.response) if plain else None
        if self.total is not None and self.total > self._limit:
            message = (
                f"{shown(self.response.url)} has {self.total} bytes, max_bytes is {self._limit}"
            )
            raise Permanent("too_large", message)

    def _continues(self) -> bool:
        """Whether the response in hand goes on where the last one broke off. Raises TaskError for one that lies."""
        if self.response.status != 206:
            return False
        match = _CONTENT_RANGE.fullmatch(self.response.headers.get("Content-Range", "").strip())
        same = (
            match is not None
            and int(match[1]) == self.received
            and match[2] in ("*", str(self.total or match[2]))
        )
        etag = self.response.headers.get("ETag", "")
        if not same or (
            etag and (self._validator or "").startswith('"') and etag != self._validator
        ):
            message = f"{shown(self.response.url)} answered another range than it was asked for"
            raise TaskError("bad_response", message, retryable=True)
        return True


@asynccontextmanager
async def open_download(
    job: Job, url: str, headers: CIMultiDict[str], limit: int
) -> AsyncIterator[Download]:
    """The download, its first response at hand. Raises TaskError, `too_large` if it says so of itself."""
    async with AsyncExitStack() as connection:
        download = Download(job, url, headers, limit, connection)
        await download.start()
        yield download


def _validator(response: aiohttp.ClientResponse) -> str | None:
    """What If-Range may be asked with: a strong ETag, or a date old enough that nothing changed within it."""
    etag = response.headers.get("ETag", "").strip()
    if re.fullmatch(r'"[^"]*"', etag):
        return etag
    modified = response.headers.get("Last-Modified", "").strip()
    try:
        age = parsedate_to_datetime(response.headers.get("Date", "")) - parsedate_to_datetime(
            modified
        )
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return modified if age >= timedelta(seconds=1) and not etag else None


def _text(value: str) -> str:
    # Header bytes that are no UTF-8 come as lone surrogates; line ends cannot come.
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


DOWNLOAD = 10 << 30  # bytes, if the payload does not say


LARGEST_DOWNLOAD = (
    64 << 30
)  # bytes that a payload may ask for: a remote store takes so many parts and no more


REPORT_EVERY = 4 << 20  # bytes


def _file_name(value: str) -> str:
    reason = name_problem(value)
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
        None,
        description="without those that belong to the connection, and without Range and If-Range",
    )
    name: FileName | None = Field(
        None, description="of the file; else as the server calls it, or as the URL ends"
    )
    max_bytes: Annotated[
        int, Field(ge=0, le=LARGEST_DOWNLOAD, description="above, the job fails as too_large")
    ] = DOWNLOAD
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = Field(
        None, description="the file's, in hex"
    )


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
    async with open_download(
        job, payload.url, sent_headers(job, payload.headers), payload.max_bytes
    ) as body:
        name, kind = payload.name or body.name, body.content_type
        file = await _stored(job, body, name, kind, payload.max_bytes)
        if payload.sha256 is not None and file.sha256 != payload.sha256.lower():
            message = f"{name} has the sha256 {file.sha256}, not the one that was asked for"
            # A body that did not say its length may have been cut off; one that did came whole, and
            # is another.
            raise TaskError("sha256_mismatch", message, retryable=body.total is None)
        await job.progress(body.received, body.received)
        return {
            "file": file,
            "status": 200 if body.response.status == 206 else body.response.status,
        }


async def _stored(job: Job, body: Download, name: str, kind: str | None, limit: int) -> FileRef:
    for _ in range(RESTARTS + 1):
        try:
            return await job.files.write(name, _reported(job, body), kind, limit=limit)
        except Changed:
            job.log.info("the download starts over: the URL gives something else, or no ranges")
    raise TaskError(
        "connection_failed", f"{name} broke off and changed {RESTARTS + 1} times", retryable=True
    )


async def _reported(job: Job, body: Download) -> AsyncIterator[bytes]:
    told = 0
    await job.progress(0, body.total)
    async for piece in body.pieces():
        yield piece
        if body.received - told >= REPORT_EVERY:
            told = body.received
            await job.progress(told, body.total)
