"""WS /v1/stream: the streams of many jobs over one WebSocket, at the pace of its reader.

A client sends {"subscribe": id, "after": …, "types": […]} or {"unsubscribe": id}; `after` and
`types` are optional. It receives entries, each with its job: {"job": id, "id": …, "type": …, …}.
A job that cannot be streamed ends only its own subscription: {"job": id, "type": "error", "data":
problem}.
"""

import asyncio
import secrets
from collections.abc import Mapping
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.routing import WebSocketRoute
from starlette.types import Message, Receive, Scope, Send

from tandem_api.http.problems import Problem, error_problem, status_problem, unexpected_problem
from tandem_api.origin import is_own_origin
from tandem_api.redis_retry import retry_briefly
from tandem_api.state import RequestState
from tandem_api.streams.follow import follow
from tandem_shared.errors import Malformed, NotFound, TandemError, Unavailable
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

PATH = "/v1/stream"  # the only one that server/http.py upgrades
PROTOCOL = "tandem.v1"
MAX_SUBSCRIPTIONS = 1000  # of one socket
MAX_ID_CHARS = 200
MAX_READERS = 4  # subscriptions of a socket that read at once: each holds what one read returns
TURN_BYTES = 1 << 20  # after which another subscription reads
MAX_REASON_BYTES = 120  # of a close frame

router = APIRouter(include_in_schema=False, default_response_class=Response)


class ClientMessage(msgspec.Struct, forbid_unknown_fields=True):
    """One message of a client."""

    subscribe: str | None = None
    unsubscribe: str | None = None
    after: str | None = None
    types: list[str] | None = None


_client_message = msgspec.json.Decoder(ClientMessage)
_encode = msgspec.json.Encoder().encode


def read_message(message: Message) -> ClientMessage:
    """The message in an ASGI event. Raises Malformed if it is not one of the sub-protocol."""
    text = message.get("text")
    if text is None:
        raise Malformed("send JSON in text frames")
    try:
        sent = _client_message.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Malformed(f"not a message of {PROTOCOL}: {error}") from None
    id = sent.subscribe if sent.subscribe is not None else sent.unsubscribe
    if id is None or (sent.subscribe is not None and sent.unsubscribe is not None):
        raise Malformed('send either "subscribe" or "unsubscribe"')
    if sent.subscribe is None and (sent.after is not None or sent.types is not None):
        raise Malformed('"unsubscribe" takes no other fields')
    if len(id) > MAX_ID_CHARS:
        raise Malformed(f"a job's id has at most {MAX_ID_CHARS} characters")
    if sent.types is not None and not set(sent.types) <= set(ENTRY_TYPES):
        raise Malformed(f'"types" must be some of {", ".join(ENTRY_TYPES)}')
    return sent


class SocketEndpoint:
    """The endpoint, as an ASGI application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state: RequestState = scope["state"]
        problem = _refusal(state["headers"], scope["subprotocols"], state["settings"].origins)
        if problem is not None:
            await problem.response(scope)(scope, receive, send)
            return
        await receive()  # websocket.connect
        # A client that offers no sub-protocol is assumed to speak this one.
        chosen = PROTOCOL if scope["subprotocols"] else None
        await send({"type": "websocket.accept", "subprotocol": chosen})
        await StreamSocket(state, send).run(receive)


def _refusal(
    headers: Mapping[str, str], offered: list[str], allowed: tuple[str, ...]
) -> Problem | None:
    """Why the upgrade is refused; None to accept it."""
    origin = headers.get("origin")
    # Browsers let pages of any origin connect, so the server must check.
    if origin is not None and not is_own_origin(origin, headers, allowed):
        return status_problem(
            403, "pages of this origin may not connect; name it in TANDEM_ORIGINS to allow them"
        )
    if offered and PROTOCOL not in offered:
        return status_problem(400, f"the sub-protocol is {PROTOCOL}")
    return None


class StreamSocket:
    """One client, and its subscriptions."""

    def __init__(self, state: RequestState, send: Send) -> None:
        self.state = state
        self.turns = asyncio.Semaphore(MAX_READERS)
        self._send = send
        self._subscriptions: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # of subscriptions and single messages

    async def run(self, receive: Receive) -> None:
        """Serves until the client leaves or sends an invalid message, or the process ends."""
        drain = self.state["drain"]
        try:
            with drain.notifying(self._leave):
                if drain.begun:
                    self._leave()
                while (message := await receive())["type"] != "websocket.disconnect":
                    try:
                        await self._handle(read_message(message))
                    except Malformed as error:
                        await self._close(1008, str(error))
                        break
        finally:
            await self._cancel_all()

    def _leave(self) -> None:
        self._start(self._close(1012, "the process is shutting down"))

    async def _close(self, code: int, reason: str) -> None:
        cut = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
        with suppress(OSError):  # the client is gone
            await self._send({"type": "websocket.close", "code": code, "reason": cut})

    async def _handle(self, message: ClientMessage) -> None:
        if message.unsubscribe is not None:
            self._unsubscribe(message.unsubscribe)
            return
        id = message.subscribe or ""
        earlier = self._unsubscribe(id)
        if len(self._subscriptions) >= MAX_SUBSCRIPTIONS:
            detail = f"a socket has at most {MAX_SUBSCRIPTIONS} subscriptions"
            self._start(self.send_problem(id, status_problem(429, detail)))
        else:
            types = frozenset(ENTRY_TYPES if message.types is None else message.types)
            subscription = Subscription(self, id, message.after, types)
            self._subscriptions[id] = self._start(self._serve(subscription, earlier))
        # Subscriptions that are ending count too: wait for them before starting more.
        while len(self._tasks) > 2 * MAX_SUBSCRIPTIONS:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    def _unsubscribe(self, id: str) -> asyncio.Task[None] | None:
        task = self._subscriptions.pop(id, None)
        if task is not None:
            task.cancel()
        return task

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(
        self, subscription: "Subscription", earlier: asyncio.Task[None] | None
    ) -> None:
        id = subscription.id
        try:
            if earlier is not None:
                await asyncio.wait({earlier})  # its entries must not follow those of the new one
            await subscription.run()
        except OSError:
            pass  # the client is gone, which `run` will see
        except TandemError as error:
            await self.send_problem(id, error_problem(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, only this subscription ends
            trace = secrets.token_hex(16)
            problem = unexpected_problem(error, trace, "subscription failed", job_id=id)
            await self.send_problem(id, problem)
        finally:
            if self._subscriptions.get(id) is asyncio.current_task():
                del self._subscriptions[id]

    async def send_problem(self, id: str, problem: Problem) -> None:
        """Sends why a job cannot be streamed (any longer)."""
        with suppress(OSError):
            await self.send_entry(
                b'{"job":%s,"type":"error","data":%s}' % (_encode(id), _encode(problem.members()))
            )

    async def send_entry(self, entry: bytes) -> None:
        """Sends one entry once the client has room for it. Raises OSError if the client is gone."""
        await self._send({"type": "websocket.send", "text": entry.decode()})

    async def _cancel_all(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


class Subscription:
    """One job's stream on a socket."""

    def __init__(
        self, socket: StreamSocket, id: str, after: str | None, types: frozenset[str]
    ) -> None:
        self.id = id
        self._socket = socket
        self._after = after
        self._types = types
        self._head = b'{"job":%s,' % _encode(id)

    async def run(self) -> None:
        """Sends all up to the job's end. Raises TandemError, OSError if the client is gone."""
        state = self._socket.state
        queue, tenant = state["queue"], state["tenant"]
        async with queue.subscribe(self.id) as change:
            record = await retry_briefly(queue.get, self.id, tenant=tenant)
            if record is None:
                raise NotFound("job", self.id)
            reader = StreamReader(
                state["source"],
                self.id,
                after=self._start(record, queue.clock.now()),
                types=self._types,
            )

            async def send(record: Record) -> None:
                await self._send_new(reader, record)

            async def idle(change: ChangeSignal, seconds: float | None) -> None:
                await change.wait(seconds)

            with state["drain"].notifying(change.set):
                complete = await follow(state, record, change, send=send, idle=idle)
        if not complete and not state["drain"].begun:
            if await queue.get(self.id, tenant=tenant) is None:
                raise NotFound("job", self.id)
            raise Unavailable("Redis does not answer")

    def _start(self, record: Record, now: float) -> Position:
        if self._after is None:
            return START
        place = parse_position(self._after)
        check_position(record, place, now)
        if place == end_position(record):
            # Over HTTP this is a 204. Here `end` is sent again, to confirm that the stream is
            # complete.
            return place._replace(item=place.item - 1)
        return place

    async def _send_new(self, reader: StreamReader, record: Record) -> None:
        more = True
        while more:
            async with self._socket.turns:
                more = await self._send_turn(reader, record)

    async def _send_turn(self, reader: StreamReader, record: Record) -> bool:
        """Sends everything or, if others wait, TURN_BYTES of it; whether more is left."""
        size = 0
        async with aclosing(reader.entries(record)) as entries:
            async for entry in entries:
                text = self._head + entry.json()[1:]
                await self._socket.send_entry(text)
                size += len(text)
                if size >= TURN_BYTES and self._socket.turns.locked():
                    return True
        return False


@router.get(PATH)
async def refuse_plain_request(request: Request) -> Response:
    """Answer a request without an upgrade."""
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    detail = "this is a WebSocket endpoint: send an upgrade"
    return status_problem(426, detail, headers=headers).response(request.scope)


router.routes.append(WebSocketRoute(PATH, SocketEndpoint()))
