"""WS /v1/stream: the streams of many jobs over one WebSocket, at the pace of whoever reads it.

A client sends {"subscribe": id, "after": …, "types": […]} or {"unsubscribe": id}, the last two of
the three as it likes; it is sent entries, each with the job it is of: {"job": id, "id": …, "type":
…, …}. A job that cannot be told of costs its own subscription alone: {"job": id, "type": "error",
"data": problem}.
"""

import asyncio
import secrets
from contextlib import aclosing, suppress
from typing import Any

import msgspec
import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message, Receive, Scope, Send

from tandem_api.http.problems import Problem, of_error, of_status
from tandem_api.http.retry import steadily
from tandem_api.http.routing import SOCKETS, Plain
from tandem_api.state import Served
from tandem_api.streams.follow import follow
from tandem_shared.errors import BadCursor, Malformed, NotFound, TandemError, Unavailable
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

PROTOCOL = "tandem.v1"
MOST = 1000  # subscriptions of one socket
LONGEST_ID = 200  # characters
TURNS = 4  # subscriptions of a socket that read at once: each may hold what one reading brings
TURN = 1 << 20  # bytes after which it is another's turn
LONGEST_REASON = 120  # bytes of a close frame's

log = structlog.get_logger()


class Wish(msgspec.Struct, forbid_unknown_fields=True):
    """One message of a client."""

    subscribe: str | None = None
    unsubscribe: str | None = None
    after: str | None = None
    types: list[str] | None = None


_wish = msgspec.json.Decoder(Wish)
_string = msgspec.json.Encoder().encode


def read(message: Message) -> Wish:
    """What a client wants. Raises Malformed for what is no message of the sub-protocol."""
    text = message.get("text")
    if text is None:
        raise Malformed("messages are JSON in text frames")
    try:
        wish = _wish.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Malformed(f"no message of {PROTOCOL}: {error}") from None
    id = wish.subscribe if wish.subscribe is not None else wish.unsubscribe
    if id is None or (wish.subscribe is not None and wish.unsubscribe is not None):
        raise Malformed('give either "subscribe" or "unsubscribe"')
    if wish.subscribe is None and (wish.after is not None or wish.types is not None):
        raise Malformed('"unsubscribe" stands alone')
    if len(id) > LONGEST_ID:
        raise Malformed("this is no job's id")
    if wish.types is not None and not set(wish.types) <= set(ENTRY_TYPES):
        raise Malformed(f"types are some of {', '.join(ENTRY_TYPES)}")
    return wish


class SocketEndpoint:
    """The endpoint, as an ASGI application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        state: Served = scope["state"]
        refusal = _refusal(headers, scope["subprotocols"], state["settings"].origins)
        if refusal is not None:
            await refusal.response(scope)(scope, receive, send)
            return
        await receive()  # websocket.connect
        chosen = PROTOCOL if scope["subprotocols"] else None
        await send({"type": "websocket.accept", "subprotocol": chosen})
        await Socket(state, send).run(receive)


def _refusal(headers: Headers, offered: list[str], allowed: tuple[str, ...]) -> Problem | None:
    """What speaks against the upgrade. Who names no sub-protocol takes the one there is."""
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in allowed:
        # A browser connects for any page, wherever that came from, and only says which.
        scheme, _, host = origin.lower().partition("://")
        if scheme not in ("http", "https") or host != headers.get("host", "").lower():
            return of_status(
                403, "pages of this origin may not connect: TANDEM_ORIGINS does not name it"
            )
    if offered and PROTOCOL not in offered:
        return of_status(400, f"the sub-protocol is {PROTOCOL}")
    return None


class Socket:
    """One client: what it subscribed to, and its turns."""

    def __init__(self, state: Served, send: Send) -> None:
        self.state = state
        self.turns = Turns(TURNS)
        self._send = send
        self._subscriptions: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # those, and what else is under way

    async def run(self, receive: Receive) -> None:
        """Serves until the client leaves, says what makes no sense, or the service ends."""
        drain = self.state["drain"]
        try:
            with drain.telling(self._leave):
                if drain.begun:
                    self._leave()
                while (message := await receive())["type"] != "websocket.disconnect":
                    try:
                        await self._obey(read(message))
                    except Malformed as error:
                        await self._close(1008, str(error))
                        break
        finally:
            await self._end()

    def _leave(self) -> None:
        self._start(self._close(1012, "the service is ending"))

    async def _close(self, code: int, reason: str) -> None:
        cut = reason.encode()[:LONGEST_REASON].decode(errors="ignore")
        with suppress(OSError):  # it has gone
            await self._send({"type": "websocket.close", "code": code, "reason": cut})

    async def _obey(self, wish: Wish) -> None:
        if wish.unsubscribe is not None:
            known = self._subscriptions.pop(wish.unsubscribe, None)
            if known is not None:
                known.cancel()
            return
        id = wish.subscribe or ""
        before = self._subscriptions.pop(id, None)
        if before is not None:
            before.cancel()
        if len(self._subscriptions) >= MOST:
            self._start(
                self.refuse(id, of_status(429, f"a socket has at most {MOST} subscriptions"))
            )
        else:
            types = frozenset(ENTRY_TYPES if wish.types is None else wish.types)
            task = self._start(self._follow(Subscription(self, id, wish.after, types), before))
            self._subscriptions[id] = task
        while len(self._tasks) > 2 * MOST:  # those that are ending: more are not begun before
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _follow(
        self, subscription: "Subscription", before: asyncio.Task[None] | None
    ) -> None:
        id = subscription.id
        try:
            if before is not None:
                await asyncio.wait({before})  # so that its entries come before the new one's
            await subscription.run()
        except OSError:
            pass  # the client has gone, as `run` is about to hear
        except TandemError as error:
            await self.refuse(id, of_error(error))
        except Exception:
            trace = secrets.token_hex(16)
            log.exception("subscription failed", trace_id=trace, job_id=id)
            more = {"trace_id": trace}
            await self.refuse(
                id, of_status(500, f"it is logged under the trace id {trace}", more=more)
            )
        finally:
            if self._subscriptions.get(id) is asyncio.current_task():
                del self._subscriptions[id]

    async def refuse(self, id: str, problem: Problem) -> None:
        """Tells that a job cannot be told of (any more)."""
        with suppress(OSError):
            await self.tell(
                b'{"job":%s,"type":"error","data":%s}' % (_string(id), _string(problem.members()))
            )

    async def tell(self, entry: bytes) -> None:
        """Sends one entry, once the client has room for it. Raises OSError when it has gone."""
        await self._send({"type": "websocket.send", "text": entry.decode()})

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


class Turns:
    """Lets `limit` at a time, in the order in which they come."""

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)
        self.waiting = 0

    async def __aenter__(self) -> None:
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._free.release()


class Subscription:
    """One job's stream on a socket."""

    def __init__(self, socket: Socket, id: str, after: str | None, types: frozenset[str]) -> None:
        self.id = id
        self._socket = socket
        self._after = after
        self._types = types
        self._head = b'{"job":%s,' % _string(id)

    async def run(self) -> None:
        """Tells everything up to the job's end. Raises what of_error knows, OSError when the client has gone."""
        state = self._socket.state
        queue, tenant = state["queue"], state["tenant"]
        async with queue.subscribe(self.id) as change:
            record = await steadily(lambda: queue.get(self.id, tenant=tenant))
            if record is None:
                raise NotFound("job", self.id)
            reader = StreamReader(
                state["source"], self.id, after=self._place(record), types=self._types
            )

            async def tell(record: Record) -> None:
                await self._tell(reader, record)

            async def idle(change: ChangeSignal, seconds: float | None) -> None:
                await change.wait(seconds)

            with state["drain"].telling(change.set):
                whole = await follow(state, record, change, tell=tell, idle=idle)
        if not whole and not state["drain"].begun:
            if await queue.get(self.id, tenant=tenant) is None:
                raise NotFound("job", self.id)
            raise Unavailable("Redis does not answer")

    def _place(self, record: Record) -> Position:
        if self._after is None:
            return START
        if len(self._after) > LONGEST_ID:
            raise BadCursor
        place = parse_position(self._after)
        check_position(record, place)
        if place == end_position(record):
            # Over HTTP this is 204; here the end is told again, since nothing else would say that
            # nothing follows.
            return place._replace(item=place.item - 1)
        return place

    async def _tell(self, reader: StreamReader, record: Record) -> None:
        turns = self._socket.turns
        more = True
        while more:
            async with turns:
                more = await self._turn(reader, record, turns)

    async def _turn(self, reader: StreamReader, record: Record, turns: Turns) -> bool:
        """Whether more is left, which waits as others do."""
        size = 0
        async with aclosing(reader.entries(record)) as entries:
            async for entry in entries:
                text = self._head + entry.json()[1:]
                await self._socket.tell(text)
                size += len(text)
                if size >= TURN and turns.waiting:
                    return True
        return False


async def no_upgrade(_request: Request) -> Response:
    """GET /v1/stream of a client that does not ask for a WebSocket."""
    problem = of_status(
        426,
        "this is a WebSocket endpoint",
        headers={"Upgrade": "websocket", "Connection": "Upgrade"},
    )
    return problem.response(_request.scope)


PATH = SOCKETS.decode()
ROUTES = [WebSocketRoute(PATH, SocketEndpoint()), Route(PATH, Plain(no_upgrade), methods=["GET"])]
