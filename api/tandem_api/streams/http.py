"""GET /v1/jobs/{id}/stream: what happens to a job and what it says, live, from any place on.

A reader costs one task that waits for its end, and what the socket buffers. One that does not read
is waited for, one that is gone is noticed, and neither holds up anything but itself.
"""

import asyncio
import time
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tandem_api.http.routing import JOB
from tandem_api.jobs.lookup import known
from tandem_api.state import Served, served
from tandem_api.streams.follow import follow
from tandem_api.streams.formats import Cut, Format, Table, negotiate
from tandem_shared.errors import BadCursor, Malformed
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

HEARTBEAT = 15.0  # seconds
STALLED = 60.0  # seconds that a reader may take for one portion
PORTION = 64 << 10  # bytes


class Gone(Exception):
    """The reader has left, or does not read any more."""


class StreamEndpoint:
    """The endpoint, as an ASGI application: a stream is no Response that Starlette knows."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        state = served(request)
        types = _types(request)
        chosen = negotiate(",".join(request.headers.getlist("accept")), types)
        id = request.path_params["id"]
        record = await known(state, id)
        after = _after(request, record)
        if after is not None and after == end_position(record):
            await Response(status_code=204)(
                scope, receive, send
            )  # this is what stops an EventSource
            return
        if after is not None and isinstance(chosen, Table):
            raise Malformed("after: CSV has no ids to go on from")
        headers = [
            (b"content-type", chosen.media_type.encode()),
            (b"cache-control", b"no-cache"),
            (b"vary", b"Accept"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if request.method == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        reader = StreamReader(state["source"], id, after=after or START, types=types)
        with suppress(Gone):
            await Stream(state, reader, chosen, send).run(record, receive)


def _types(request: Request) -> frozenset[str]:
    given = request.query_params.getlist("types")
    if not given:
        return frozenset(ENTRY_TYPES)
    types = frozenset(word.strip() for text in given for word in text.split(","))
    if not types <= frozenset(ENTRY_TYPES):
        raise Malformed(f"types: give some of {', '.join(ENTRY_TYPES)}, separated by commas")
    return types


def _after(request: Request, record: Record) -> Position | None:
    # A browser that connects again repeats its URL, so what it has seen since counts.
    text = request.headers.get("last-event-id") or request.query_params.get("after")
    if not text:
        return None
    if len(text) > 64:
        raise BadCursor
    place = parse_position(text)
    check_position(record, place)
    return place


class Stream:
    """One reader of one job over HTTP, from its first byte to its last."""

    def __init__(self, state: Served, reader: StreamReader, written: Format, send: Send) -> None:
        self._state = state
        self._reader, self._format, self._send = reader, written, send
        self._left = False
        self._sent_at = 0.0

    async def run(self, record: Record, receive: Receive) -> None:
        """Tells everything until the job's end, the reader's, or the service's. Raises Gone."""
        async with self._state["queue"].subscribe(record.id) as change:
            leaving = asyncio.create_task(self._leave(receive, change))
            try:
                with self._state["drain"].telling(change.set):
                    await self._put(self._format.start)
                    whole = await follow(
                        self._state, record, change, tell=self._tell, idle=self._idle
                    )
            except Cut:
                whole = False
            finally:
                leaving.cancel()
        # A cut body of CSV must show as one: it is not ended. In the other formats the entry `end`
        # is missing.
        if whole or not isinstance(self._format, Table):
            await self._put(b"", more=False)

    async def _leave(self, receive: Receive, change: ChangeSignal) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left = True
        change.set()

    async def _tell(self, record: Record) -> None:
        parts: list[bytes] = []
        size = 0
        async for group in self._reader.groups(record):
            if (
                isinstance(self._format, Table)
                and group.attempt < record.attempt
                and group.type == "output"
            ):
                continue  # superseded before it was told
            try:
                part = self._format.written(group)
            except Cut:
                if parts:
                    await self._put(b"".join(parts))  # what came before the cut
                raise
            parts.append(part)
            size += len(part)
            if size >= PORTION:
                await self._put(b"".join(parts))
                parts, size = [], 0
        if size:
            await self._put(b"".join(parts))

    async def _idle(self, change: ChangeSignal, seconds: float | None) -> None:
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            now = time.monotonic()
            quiet = self._sent_at + HEARTBEAT
            changed = await change.wait(max(0.0, (quiet if end is None else min(end, quiet)) - now))
            if self._left:
                raise Gone
            if (now := time.monotonic()) >= quiet:
                await self._put(self._format.idle)
            if changed or (end is not None and now >= end):
                return

    async def _put(self, body: bytes, *, more: bool = True) -> None:
        if self._left:
            raise Gone
        try:
            async with asyncio.timeout(STALLED):
                await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except TimeoutError:
            raise Gone from None
        self._sent_at = time.monotonic()


ROUTES = [Route(f"{JOB}/stream", StreamEndpoint(), methods=["GET"])]
