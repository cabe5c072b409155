"""POST /v1/jobs/bulk: many jobs in one request. Each stands for itself: a bad one is told in its place.

An array is read whole (it is bounded) and answered by an array. Lines are read, enqueued and
answered as they come, in constant memory. Most clients send everything before they read anything:
what they do not take waits on disk.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import IO

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tandem_api.http.body import IDLE, content_type, decode, read_body
from tandem_api.http.headers import traceparent
from tandem_api.http.problems import Problem, of_error, of_http
from tandem_api.http.retry import steadily
from tandem_api.state import Served, served
from tandem_shared.errors import Invalid, Malformed, TandemError, TooLarge, Unavailable
from tandem_shared.jobs.record import Submission

ITEMS = 10_000  # of an array
ARRAY = 64 << 20  # bytes of an array
ARRAY_TIME = 600.0  # seconds for an array to come
PORTION = 500  # items that are enqueued together
BREATH = 50  # items after which others get their turn
HELD = 1 << 20  # bytes of answers that are kept in memory for a client that does not read yet
STALLED = 60.0  # seconds that a client may take for one portion of answers

_items = msgspec.json.Decoder(list[msgspec.Raw])


class BulkEndpoint:
    """The endpoint, as an ASGI application: it reads and answers at the same time."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if "idempotency-key" in request.headers:
            raise Malformed(
                'Idempotency-Key: a bulk has none; give each item its own "idempotency_key"'
            )
        intake = Intake(request)
        if content_type(request, lines=True) == "json":
            await _array(request, intake, send)
        else:
            await _lines(request, intake, send)


class Intake:
    """Makes answers of items."""

    def __init__(self, request: Request) -> None:
        state: Served = served(request)
        self._queue, self._submissions, self._tenant = (
            state["queue"],
            state["submissions"],
            state["tenant"],
        )
        self._traceparent = traceparent(request.headers)
        self.limit = state["settings"].max_body
        self.begun = False  # something was accepted or answered: no 503 for the whole any more

    async def answer(self, items: Sequence[bytes | None]) -> list[bytes]:
        """One JSON value for each item, in order; None is an item that was too large to be kept.

        Raises Unavailable until it has begun: then the whole may simply be sent again.
        """
        read = [await self._read(item, number) for number, item in enumerate(items)]
        jobs = [one for one in read if isinstance(one, Submission)]
        try:
            enqueued = iter(await steadily(lambda: self._queue.submit_many(jobs)) if jobs else [])
        except Unavailable as error:
            if not self.begun:
                raise
            problem = of_error(error)
            return [_told(problem if isinstance(one, Submission) else one) for one in read]
        self.begun = self.begun or bool(jobs)
        answers = []
        for one in read:
            if isinstance(one, Problem):
                answers.append(_told(one))
                continue
            done = next(enqueued)
            answers.append(
                _told(of_error(done))
                if isinstance(done, TandemError)
                else b'{"id":"%s"}' % done.id.encode()
            )
        return answers

    async def _read(self, item: bytes | None, number: int) -> Submission | Problem:
        if number % BREATH == BREATH - 1:
            await asyncio.sleep(0)
        try:
            if item is None or len(item) > self.limit:
                raise TooLarge("the item", self.limit)
            return await self._submissions.read(
                item, tenant=self._tenant, traceparent=self._traceparent, item=True
            )
        except Unavailable:
            if not self.begun:
                raise
            return of_error(Unavailable("the catalogue cannot be read now"))
        except TandemError as error:
            return of_error(error)
        except HTTPException as error:
            return of_http(error)


def _told(problem: Problem) -> bytes:
    return msgspec.json.encode({"error": problem.members()})


# -------------------------------------------------------------------------------------------- array


async def _array(request: Request, intake: Intake, send: Send) -> None:
    body = await read_body(request, ARRAY, total=ARRAY_TIME)
    try:
        items: list[msgspec.Raw] = decode(body, _items)
    except Malformed:
        if body.lstrip()[:1] != b"[" and _is_json(body):
            raise Invalid([("", "must be a JSON array of jobs")]) from None
        raise
    if len(items) > ITEMS:
        raise TooLarge("the array", ITEMS, "items")
    answers: list[bytes] = []
    for start in range(0, len(items), PORTION):
        answers += await intake.answer([bytes(item) for item in items[start : start + PORTION]])
    response = Response(b"[" + b",".join(answers) + b"]", media_type="application/json")
    await response(request.scope, request.receive, send)


def _is_json(body: bytes) -> bool:
    with suppress(Malformed):
        decode(body)
        return True
    return False


# -------------------------------------------------------------------------------------------- lines


async def _lines(request: Request, intake: Intake, send: Send) -> None:
    answers = Answers(send)
    try:
        async for items in _portions(request, intake.limit):
            told = await intake.answer(items)
            # Not begun before the first portion: while Redis is away, the answer is a 503 as
            # everywhere.
            answers.begin()
            intake.begun = True
            await answers.put(b"".join(line + b"\n" for line in told))
        answers.begin()
        await answers.end()
    except (HTTPException, TimeoutError):
        if not answers.begun:
            raise
        # The rest of the lines never came, or nobody takes the answers: the body is left without
        # its end.
    finally:
        await answers.close()


async def _portions(request: Request, limit: int) -> AsyncIterator[list[bytes | None]]:
    """The lines of each chunk of the body, at most PORTION at once, without blank ones; None for one above `limit`."""
    rest, skipping = bytearray(), False
    async for chunk in _chunks(request):
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            if not skipping:
                rest += chunk
                if len(rest) > limit:
                    rest, skipping = bytearray(), True
            continue
        lines: list[bytes | None] = list((bytes(rest) + head).split(b"\n"))
        if skipping:
            lines[0] = None
        rest, skipping = bytearray(tail), False
        lines = [line for line in lines if line is None or line.strip()]
        for start in range(0, len(lines), PORTION):
            yield lines[start : start + PORTION]
    if skipping or rest.strip():
        yield [None if skipping else bytes(rest)]


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(IDLE):
                message = await request.receive()
        except TimeoutError:
            raise HTTPException(408, f"no byte came for {IDLE:g} s") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if chunk := message.get("body"):
            yield chunk
        if not message.get("more_body", False):
            return


class Answers:
    """What is to be sent, in order: in memory while the client reads, on disk while it does not."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=HELD)  # noqa: SIM115 - `close` closes it
        self._moving = asyncio.Lock()
        self._written = self._sent = 0
        self._news = asyncio.Event()
        self._ended = False
        self._sending: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether the client has been told a status."""
        return self._sending is not None

    def begin(self) -> None:
        """Starts to answer."""
        if self._sending is None:
            self._sending = asyncio.create_task(self._run())

    async def put(self, data: bytes) -> None:
        """Adds to the end. Never waits for the client."""
        async with self._moving:
            await self._file_does(lambda: self._write(data))
            self._written += len(data)
        self._news.set()

    async def end(self) -> None:
        """Waits until all is sent. Raises TimeoutError when the client takes nothing for STALLED seconds."""
        self._ended = True
        self._news.set()
        sent = -1
        while self._sending is not None and not self._sending.done():
            if sent == self._sent:
                raise TimeoutError
            sent = self._sent
            await asyncio.wait({self._sending}, timeout=STALLED)
        if self._sending is not None:
            self._sending.result()

    async def _run(self) -> None:
        headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        while not (self._ended and self._sent == self._written):
            self._news.clear()
            while data := await self._next():
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
                self._sent += len(data)
            if not self._ended:
                await self._news.wait()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _next(self) -> bytes:
        async with self._moving:
            if self._sent < self._written:
                return await self._file_does(self._read)
            if self._written and not self._ended:
                self._sent = self._written = 0  # nothing waits: the space is used again
                self._file.seek(0)
                self._file.truncate()
            return b""

    async def _file_does(self, move: Callable[[], bytes]) -> bytes:
        # In memory it is sooner done than handed to a thread.
        return move() if self._written < HELD // 2 else await asyncio.to_thread(move)

    def _write(self, data: bytes) -> bytes:
        self._file.seek(self._written)
        self._file.write(data)
        return b""

    def _read(self) -> bytes:
        self._file.seek(self._sent)
        return self._file.read(64 << 10)

    async def close(self) -> None:
        """Stops sending, and gives the space back."""
        if self._sending is not None and not self._sending.done():
            self._sending.cancel()
            await asyncio.wait({self._sending})
        self._file.close()


ROUTES = [Route("/v1/jobs/bulk", BulkEndpoint(), methods=["POST"])]
