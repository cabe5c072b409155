"""POST /v1/jobs/bulk: many jobs in one request; an item that is refused does not affect the others.

An array is bounded, so it is read as a whole and answered by an array. NDJSON is read, enqueued and
answered as it arrives, in constant memory: most clients read nothing until they have sent
everything, so unread answers are buffered on disk.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import repeat
from typing import IO

import msgspec
from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from tandem_api.http.body import (
    IDLE_SECONDS,
    JSON,
    NDJSON,
    JsonBytes,
    body_chunks,
    content_type,
    decode,
    read_body,
)
from tandem_api.http.parameters import headers_of, traceparent
from tandem_api.http.problems import error_problem
from tandem_api.http.routing import PlainRoute
from tandem_api.openapi.describe import (
    BODY_PROBLEMS,
    TEXT,
    TRACEPARENT,
    content,
    raw_router,
    ref,
    response,
)
from tandem_api.redis_retry import retry_briefly
from tandem_api.state import state_of
from tandem_shared.errors import Invalid, Malformed, TandemError, TooLarge, Unavailable
from tandem_shared.jobs.record import Submission
from tandem_shared.queue.messages import Submitted

MAX_ITEMS = 10_000  # of an array
MAX_ARRAY_BYTES = 64 << 20
ARRAY_SECONDS = 600.0  # for an array to arrive
BATCH_ITEMS = 500  # that are enqueued together
YIELD_ITEMS = 50  # after which other requests get their turn
MEMORY_BYTES = 1 << 20  # of unread answers in memory; more of them go to disk
READ_BYTES = 64 << 10
STALLED_SECONDS = 60.0  # that a client may take for one write of answers

_items = msgspec.json.Decoder(list[msgspec.Raw])

router = raw_router("jobs", route_class=PlainRoute)


@router.post(
    "/v1/jobs/bulk",
    responses={
        200: response(
            "One answer for each item, in order",
            {
                **content({"type": "array", "items": ref("BulkAnswer")}, JSON),
                **content(TEXT, NDJSON),
            },
        ),
        **BODY_PROBLEMS,
    },
    openapi_extra={
        "parameters": [TRACEPARENT],
        "requestBody": {
            "required": True,
            "content": {
                **content({"type": "array", "items": ref("BulkItem")}, JSON),
                **content(TEXT, NDJSON),
            },
        },
    },
)
async def submit_jobs(request: Request) -> Response:
    """Submit many jobs: an array, or any number of lines.

    An array of up to 10,000 items is answered by an array, NDJSON by NDJSON while it is being sent.
    """
    if "idempotency-key" in headers_of(request):
        raise Malformed(
            'Idempotency-Key: does not apply to a bulk; give each item an "idempotency_key"'
        )
    batches = BatchSubmitter(request)
    if content_type(request, ndjson=True) == NDJSON:
        return NdjsonResponse(request, batches)
    items = await _read_array(request)
    answers: list[bytes] = []
    for start in range(0, len(items), BATCH_ITEMS):
        batch = items[start : start + BATCH_ITEMS]
        answers += await batches.submit([bytes(item) for item in batch])
    return JsonBytes(b"[" + b",".join(answers) + b"]")


async def _read_array(request: Request) -> list[msgspec.Raw]:
    body = await read_body(request, MAX_ARRAY_BYTES, total_seconds=ARRAY_SECONDS)
    try:
        items: list[msgspec.Raw] = decode(body, _items)
    except Malformed:
        if body.lstrip()[:1] != b"[":
            decode(body)  # raises Malformed if it is not JSON at all
            raise Invalid([("", "must be a JSON array of jobs")]) from None
        raise
    if len(items) > MAX_ITEMS:
        raise TooLarge("the array", MAX_ITEMS, "items")
    return items


class BatchSubmitter:
    """Enqueues the items of one request, batch by batch."""

    def __init__(self, request: Request) -> None:
        state = state_of(request)
        self._queue, self._submissions = state["queue"], state["submissions"]
        self._tenant, self._traceparent = state["tenant"], traceparent(request)
        self.max_item_bytes = state["settings"].max_body
        # Set once an item was accepted or answered: then the request as a whole cannot be a 503.
        self.started = False

    async def submit(self, items: Sequence[bytes | None]) -> list[bytes]:
        """One JSON value for each item, in order; None stands for an item that was too large.

        Raises Unavailable until it has started: then the client may repeat the whole request.
        """
        read = [await self._read(item, number) for number, item in enumerate(items, 1)]
        jobs = [one for one in read if isinstance(one, Submission)]
        submitted: Iterator[Submitted | TandemError]
        try:
            submitted = iter(await retry_briefly(self._queue.submit_many, jobs) if jobs else ())
        except Unavailable as error:
            if not self.started:
                raise
            submitted = repeat(error)
        self.started = self.started or bool(jobs)
        return [_answer(next(submitted) if isinstance(one, Submission) else one) for one in read]

    async def _read(self, item: bytes | None, number: int) -> Submission | TandemError:
        if number % YIELD_ITEMS == 0:
            await asyncio.sleep(0)
        try:
            if item is None or len(item) > self.max_item_bytes:
                raise TooLarge("the item", self.max_item_bytes)
            return await self._submissions.read(
                item, tenant=self._tenant, traceparent=self._traceparent, item=True
            )
        except TandemError as error:
            if isinstance(error, Unavailable) and not self.started:
                raise
            return error


def _answer(done: Submitted | TandemError) -> bytes:
    if isinstance(done, TandemError):
        return msgspec.json.encode({"error": error_problem(done).members()})
    return b'{"id":"%s"}' % done.id.encode()


class NdjsonResponse(Response):
    """Answers lines while more of them arrive."""

    def __init__(self, request: Request, batches: BatchSubmitter) -> None:
        self._request, self._batches = request, batches

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        answers = AnswerSpool(send)
        try:
            async for items in _read_lines(self._request, self._batches.max_item_bytes):
                lines = await self._batches.submit(items)
                # Begin after the first batch: while Redis is away, the response is a 503.
                answers.begin()
                self._batches.started = True
                await answers.put(b"".join(line + b"\n" for line in lines))
            answers.begin()
            await answers.end()
        except (HTTPException, TimeoutError):
            if not answers.begun:
                raise
            # More lines never arrived, or the client does not read. The response breaks off, which
            # tells the client that it is incomplete.
        finally:
            await answers.close()


async def _read_lines(request: Request, max_bytes: int) -> AsyncIterator[list[bytes | None]]:
    """Non-empty lines of the body, up to BATCH_ITEMS at a time; None for one above `max_bytes`."""
    rest, skipping = bytearray(), False
    async for chunk in body_chunks(request, IDLE_SECONDS):
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            if not skipping:
                rest += chunk
                if len(rest) > max_bytes:
                    rest, skipping = bytearray(), True
            continue
        lines: list[bytes | None] = list((bytes(rest) + head).split(b"\n"))
        if skipping:
            lines[0] = None
        rest, skipping = bytearray(tail), False
        lines = [line for line in lines if line is None or line.strip()]
        for start in range(0, len(lines), BATCH_ITEMS):
            yield lines[start : start + BATCH_ITEMS]
    if skipping or rest.strip():
        yield [None if skipping else bytes(rest)]


class AnswerSpool:
    """Buffers answers for the client: in memory while it reads, on disk while it does not."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115 - `close` closes it
        self._moving = asyncio.Lock()
        self._written = self._sent = 0
        self._changed = asyncio.Event()
        self._ended = False
        self._sending: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether the client has been sent a status."""
        return self._sending is not None

    def begin(self) -> None:
        """Starts the response."""
        if self._sending is None:
            self._sending = asyncio.create_task(self._run())

    async def put(self, data: bytes) -> None:
        """Appends data. Never waits for the client."""
        async with self._moving:
            await self._on_file(lambda: self._write(data))
            self._written += len(data)
        self._changed.set()

    async def end(self) -> None:
        """Waits until all is sent. Raises TimeoutError after STALLED_SECONDS without progress."""
        self._ended = True
        self._changed.set()
        sent = -1
        while self._sending is not None and not self._sending.done():
            if sent == self._sent:
                raise TimeoutError
            sent = self._sent
            await asyncio.wait({self._sending}, timeout=STALLED_SECONDS)
        if self._sending is not None:
            self._sending.result()

    async def _run(self) -> None:
        headers = [(b"content-type", NDJSON.encode()), (b"cache-control", b"no-store")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        while not (self._ended and self._sent == self._written):
            self._changed.clear()
            while data := await self._next():
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
                self._sent += len(data)
            if not self._ended:
                await self._changed.wait()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self) -> bytes:
        async with self._moving:
            if self._sent < self._written:
                return await self._on_file(self._read)
            if self._written and not self._ended:
                self._sent = self._written = 0  # everything is sent: reuse the space
                self._file.seek(0)
                self._file.truncate()
            return b""

    async def _on_file(self, move: Callable[[], bytes]) -> bytes:
        # In memory this is faster than handing it to a thread.
        return move() if self._written < MEMORY_BYTES // 2 else await asyncio.to_thread(move)

    def _write(self, data: bytes) -> bytes:
        self._file.seek(self._written)
        self._file.write(data)
        return b""

    def _read(self) -> bytes:
        self._file.seek(self._sent)
        return self._file.read(READ_BYTES)

    async def close(self) -> None:
        """Stops sending and removes the buffer."""
        if self._sending is not None and not self._sending.done():
            self._sending.cancel()
            await asyncio.wait({self._sending})
        self._file.close()
