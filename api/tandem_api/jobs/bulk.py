"""POST /v1/jobs/bulk: many jobs in one request; an item that is refused does not affect the others.

An array is bounded, so it is read as a whole and answered by an array. NDJSON is read and enqueued
as it arrives, in constant memory. It is answered once all of it has come: most clients read nothing
before that, and proxies stop sending once they have passed on the head of a response. Until then
the answers wait on disk.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from itertools import repeat

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
from tandem_api.http.memory import Share
from tandem_api.http.parameters import headers_of, traceparent
from tandem_api.http.problems import error_problem
from tandem_api.http.routing import PlainRoute
from tandem_api.jobs.spool import AnswerSpool
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
TURN_SECONDS = 0.01  # after which other requests get their turn

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

    An array of up to 10,000 items is answered by an array, NDJSON by NDJSON once all of it has come
    or very many answers wait.
    """
    if "idempotency-key" in headers_of(request):
        raise Malformed(
            'Idempotency-Key: does not apply to a bulk; give each item an "idempotency_key"'
        )
    batches = BatchSubmitter(request)
    if content_type(request, ndjson=True) == NDJSON:
        return NdjsonResponse(request, batches)
    with state_of(request)["memory"].arrays.share() as share:
        items = await _read_array(request, share)
        answers: list[bytes] = []
        for start in range(0, len(items), BATCH_ITEMS):
            batch = items[start : start + BATCH_ITEMS]
            answers += await batches.submit([bytes(item) for item in batch])
        return JsonBytes(b"[" + b",".join(answers) + b"]")


async def _read_array(request: Request, share: Share) -> list[msgspec.Raw]:
    body = await read_body(request, MAX_ARRAY_BYTES, share, total_seconds=ARRAY_SECONDS)
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
        read: list[Submission | TandemError] = []
        end = time.perf_counter() + TURN_SECONDS
        for item in items:
            read.append(await self._read(item))
            if time.perf_counter() > end:
                await asyncio.sleep(0)
                end = time.perf_counter() + TURN_SECONDS
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

    async def _read(self, item: bytes | None) -> Submission | TandemError:
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
    """Answers lines once all of them have arrived, or too many answers wait."""

    def __init__(self, request: Request, batches: BatchSubmitter) -> None:
        self._request, self._batches = request, batches

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        state = state_of(self._request)
        answers = AnswerSpool(send, state["settings"].bulk_spool, state["memory"].spools)
        try:
            with state["memory"].bodies.share() as share:
                lines = _read_lines(self._request, self._batches.max_item_bytes, share)
                async for items in lines:
                    done = await self._batches.submit(items)
                    self._batches.started = True
                    await answers.put(b"".join(line + b"\n" for line in done))
            await answers.end()
        except (HTTPException, TimeoutError, Unavailable):
            if not self._batches.started:
                raise
            # More lines never arrived, or the client does not read. The response has the answers
            # so far, since their jobs are accepted, and breaks off.
            with suppress(TimeoutError):
                await answers.cut()
        finally:
            await answers.close()


async def _read_lines(
    request: Request, max_bytes: int, share: Share
) -> AsyncIterator[list[bytes | None]]:
    """Non-empty lines of the body, up to BATCH_ITEMS at a time; None for one above `max_bytes`."""
    rest, skipping = bytearray(), False
    async for chunk in body_chunks(request, IDLE_SECONDS):
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            if not skipping:
                rest += chunk
                if len(rest) > max_bytes:
                    rest, skipping = bytearray(), True
                share.resize(len(rest))
            continue
        whole: bytes | None = bytes(rest) + head
        rest = bytearray(tail)
        share.resize(len(rest))
        while whole is not None:
            # Not all at once: of short lines, each takes far more memory than its bytes.
            parts = whole.split(b"\n", BATCH_ITEMS)
            whole = parts.pop() if len(parts) > BATCH_ITEMS else None
            lines: list[bytes | None] = list(parts)
            if skipping:
                lines[0], skipping = None, False
            lines = [line for line in lines if line is None or line.strip()]
            if lines:
                yield lines
    if skipping or rest.strip():
        yield [None if skipping else bytes(rest)]
