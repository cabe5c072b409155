"""GET /v1/jobs/{id}/stream: a job's events and output, live, from any position on.

A reader costs one task that watches for its disconnect, plus its socket's buffers. A slow reader
delays nobody else, and one that has left is noticed.
"""

import asyncio
import math
import time
from contextlib import suppress

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from tandem_api.http.parameters import headers_of
from tandem_api.http.routing import JOB, PlainRoute
from tandem_api.jobs.lookup import find_job
from tandem_api.openapi.describe import (
    JOB_ID,
    TEXT,
    content,
    list_parameter,
    parameter,
    problems,
    raw_router,
    response,
)
from tandem_api.state import RequestState, state_of
from tandem_api.streams.follow import follow
from tandem_api.streams.formats import (
    CSV,
    NDJSON_TYPES,
    SSE,
    CsvFormat,
    StreamFormat,
    Truncated,
    negotiate,
)
from tandem_shared.errors import Malformed
from tandem_shared.jobs.record import Record
from tandem_shared.queue.pubsub import ChangeSignal
from tandem_shared.streams.reader import (
    ENTRY_TYPES,
    START,
    Position,
    StreamReader,
    check_position,
    end_position,
    parse_position,
)

HEARTBEAT_SECONDS = 15.0
STALLED_SECONDS = 60.0  # for one write, until a reader is disconnected
WRITE_BYTES = 64 << 10

router = raw_router("jobs", route_class=PlainRoute)


@router.get(
    f"{JOB}/stream",
    responses={
        200: response(
            "Entries up to `end`: each event, or each line, has one `Entry` as JSON",
            # Without a schema for SSE: some tools apply it to the body, others to each event.
            {**content(TEXT, *NDJSON_TYPES, CSV), **content({}, SSE)},
        ),
        204: response("`after` is the id of `end`: nothing follows"),
        **problems(400, 404, 406),
    },
    openapi_extra={
        "parameters": [
            JOB_ID,
            list_parameter("types", "Some types of entries; `end` is always sent", [*ENTRY_TYPES]),
            parameter("after", "query", "The id of the last entry that the client has"),
            parameter("Last-Event-ID", "header", "The same, as an EventSource sends it"),
        ]
    },
)
async def stream_job(request: Request) -> Response:
    """Stream what happens to a job and what it outputs, live and resumable.

    Without `after`, from the start. When `attempt` rises, discard the output of lower attempts.
    """
    state = state_of(request)
    types = _types(request)
    chosen = negotiate(headers_of(request).get("accept", ""), types)
    id = request.path_params["id"]
    record = await find_job(state, id)
    after = _after(request, record, state["queue"].clock.now())
    if after is not None and after == end_position(record):
        return Response(status_code=204)  # stops an EventSource from reconnecting
    if after is not None and isinstance(chosen, CsvFormat):
        raise Malformed("after: CSV has no ids to resume from")
    reader = StreamReader(state["source"], id, after=after or START, types=types)
    return JobStream(state, record, reader, chosen)


def _types(request: Request) -> frozenset[str]:
    given = request.query_params.getlist("types")
    if not given:
        return frozenset(ENTRY_TYPES)
    types = frozenset(word.strip() for text in given for word in text.split(","))
    if not types <= frozenset(ENTRY_TYPES):
        raise Malformed(f"types: give some of {', '.join(ENTRY_TYPES)}, separated by commas")
    return types


def _after(request: Request, record: Record, now: float) -> Position | None:
    # A browser reconnects with the same URL, so Last-Event-ID is the newer of the two.
    text = headers_of(request).get("last-event-id") or request.query_params.get("after")
    if not text:
        return None
    place = parse_position(text)
    check_position(record, place, now)
    return place


class ClientGone(Exception):
    """The reader has left, or has stopped reading."""


class JobStream(Response):
    """One reader of one job, from the first byte to the last."""

    def __init__(
        self, state: RequestState, record: Record, reader: StreamReader, chosen: StreamFormat
    ) -> None:
        self._state, self._record = state, record
        self._reader, self._format = reader, chosen
        self._gone = False
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", self._format.media_type.encode()),
            (b"cache-control", b"no-cache"),
            (b"vary", b"Accept"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        self._send = send
        with suppress(ClientGone):
            await self._run(receive)

    async def _run(self, receive: Receive) -> None:
        """Sends everything up to the end of the job, or of this process. Raises ClientGone."""
        async with self._state["queue"].subscribe(self._record.id) as change:
            leaving = asyncio.create_task(self._watch_client(receive, change))
            try:
                with self._state["drain"].notifying(change.set):
                    await self._put(self._format.start)
                    complete = await follow(
                        self._state, self._record, change, send=self._send_new, idle=self._idle
                    )
            except Truncated:
                complete = False
            finally:
                leaving.cancel()
        # An incomplete CSV body breaks off, so that its reader sees an error. In the other formats
        # the missing entry `end` shows it.
        if complete or not isinstance(self._format, CsvFormat):
            await self._put(b"", more=False)

    async def _watch_client(self, receive: Receive, change: ChangeSignal) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        change.set()

    async def _send_new(self, record: Record) -> None:
        data = bytearray()
        async for group in self._reader.groups(record):
            if (
                isinstance(self._format, CsvFormat)
                and group.attempt < record.attempt
                and group.type == "output"
            ):
                continue  # output of an earlier attempt
            try:
                data += self._format.write(group)
            except Truncated:
                if data:
                    await self._put(bytes(data))
                raise
            if len(data) >= WRITE_BYTES:
                await self._put(bytes(data))
                data.clear()
        if data:
            await self._put(bytes(data))

    async def _idle(self, change: ChangeSignal, seconds: float | None) -> None:
        end = time.monotonic() + (math.inf if seconds is None else seconds)
        while True:
            quiet = self._sent_at + HEARTBEAT_SECONDS
            changed = await change.wait(max(0.0, min(end, quiet) - time.monotonic()))
            if self._gone:
                raise ClientGone
            now = time.monotonic()
            if now >= quiet:
                await self._put(self._format.idle)
            if changed or now >= end:
                return

    async def _put(self, body: bytes, *, more: bool = True) -> None:
        if self._gone:
            raise ClientGone
        try:
            async with asyncio.timeout(STALLED_SECONDS):
                await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError:
            raise ClientGone from None
        self._sent_at = time.monotonic()
