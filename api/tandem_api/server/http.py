"""HTTP/1.1 by uvicorn and httptools, with limits on the size of a head and on the time it takes.

Connections that are upgraded continue in `websocket.py`.
"""

import asyncio
from http import HTTPStatus
from types import FunctionType
from typing import Any

import msgspec
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from tandem_api.http.body import BODY_COMPLETE
from tandem_api.http.problems import MEDIA_TYPE, status_problem
from tandem_shared.settings import Settings

SOCKET_PATH = b"/v1/stream"  # the only path that offers an upgrade to WebSocket
MAX_HEAD_BYTES = 64 << 10  # of a request's head, and of what follows the last chunk of a body
HEAD_SECONDS = 30.0  # from the connection, or from the first byte of a next head, to its end
LINGER_SECONDS = 1.0  # from a refusal to closing its connection, see `_refuse`

_COMPLETE: dict[str, Any] = {BODY_COMPLETE: {}}  # shared by all scopes, and never changed


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, with a limit on the size of a head and on the time it takes to arrive.

    The parser keeps bytes in memory until it reports progress, so they are counted from one report
    to the next. Bytes that are not HTTP get a problem in response. An upgrade other than to the
    WebSocket is treated as an ordinary request.
    """

    _silent_bytes = 0  # since the parser's last progress
    _in_message = False  # after a complete head, until the end of its body
    _refused = False
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        """Starts the timer for the first head."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer."""
        super().connection_lost(exc)
        self._stop_timer()

    def data_received(self, data: bytes) -> None:
        """Parses the data; refuses a head that is too large."""
        if self._refused:
            return
        while not self._in_message and len(data) > (room := MAX_HEAD_BYTES - self._silent_bytes):
            # A single read may exceed the limit.
            self._parse(data[:room])
            if self._silent_bytes >= MAX_HEAD_BYTES:
                self._refuse(431, f"the head of the request has more than {MAX_HEAD_BYTES} bytes")
            if self._refused or self.transport.is_closing():
                return
            data = data[room:]
        self._parse(data)
        if self._silent_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"more than {MAX_HEAD_BYTES} bytes follow the body")
        elif self._silent_bytes and self._head_timer is None and not self._in_message:
            self._start_timer()

    def _parse(self, data: bytes) -> None:
        self._silent_bytes += len(data)
        super().data_received(data)

    # Called by the parser as it makes progress.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # The parser does not say how many bytes of this read belong to the head.
        self._silent_bytes = self._silent_bytes or 1

    def on_headers_complete(self) -> None:
        self._silent_bytes, self._in_message = 0, True
        self._stop_timer()
        _on_headers_complete(self)

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._silent_bytes, self._in_message = 0, False
        self.scope["extensions"] = _COMPLETE
        super().on_message_complete()

    # The timer of a head.

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_timed_out)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_timer()  # a response is being sent: do not cut it off
        elif self._silent_bytes:
            self._refuse(408, f"the head of the request did not arrive within {HEAD_SECONDS:g} s")
        else:
            self.transport.close()

    # Upgrades.

    def _should_upgrade(self) -> bool:
        if not super()._should_upgrade() or self.parser.get_method() != b"GET":
            return False
        # A response that is still being sent would end up among the frames.
        idle = self.cycle is None or self.cycle.response_complete
        path = self.url.partition(b"?")[0]
        settings: Settings = self.app_state["settings"]
        return idle and path.removeprefix(settings.root_path.encode()) == SOCKET_PATH

    def handle_websocket_upgrade(self) -> None:
        """Hands the connection over; drops bytes that came in the same read as the head."""
        self._stop_timer()
        self._refused = True
        super().handle_websocket_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        pass  # any client could flood the log with it

    # Refusals.

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the signature is uvicorn's own
        """Answers and closes."""
        self._refuse(400, "the request is not valid HTTP/1.1")

    def _refuse(self, status: int, detail: str) -> None:
        if self.transport.is_closing() or self._refused:
            return
        self._refused = True
        self._stop_timer()
        self._unset_keepalive_if_required()
        may_answer = self._may_answer()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not may_answer:
            self.transport.close()
            return
        body = msgspec.json.encode(status_problem(status, detail).members())
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        # Closing a socket with unread bytes resets the connection, and the client would lose the
        # response: close it a little later.
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _may_answer(self) -> bool:
        """Whether a response would not end up in the middle of another one."""
        if self.cycle is None:
            return True
        if self._in_message:
            return not (self.cycle.response_started or self.pipeline)
        return self.cycle.response_complete


class Cycle(RequestResponseCycle):
    """uvicorn's, except that a response whose body is one message is sent by one write.

    uvloop passes each write to the kernel, and a second one takes 5 µs, which is 7 % of a POST. So
    the head is held back until the body's first message, which even a stream sends at once.
    """

    _start: Any = None  # the head that is held back

    async def send(self, message: Any) -> None:
        """Sends a part of the response, or holds it back."""
        # Of several pipelined requests, uvicorn marks only the last one as disconnected.
        self.disconnected = self.disconnected or self.transport.is_closing()
        if message["type"] == "http.response.start" and not self.response_started:
            # The response counts as started, so that nothing else sends another one.
            self._start, self.response_started = message, True
            return
        start, self._start = self._start, None
        if start is not None:
            names = [name for name, _ in start["headers"]]
            if b"content-length" in names and not message.get("more_body"):
                if self.flow.write_paused and not self.disconnected:
                    await self.flow.drain()
                if not self.disconnected:
                    self._send_whole(start, names, message["body"])
                return
            self.response_started = False
            await super().send(start)
        await super().send(message)

    def _send_whole(self, start: Any, names: list[bytes], body: bytes) -> None:
        headers = start["headers"]
        values = [value for _, value in headers]
        if HEADER_RE.search(b"".join(names)) or HEADER_VALUE_RE.search(b"".join(values)):
            raise RuntimeError(
                "a header of the response has a name or value that HTTP does not allow"
            )
        self.waiting_for_100_continue = False
        head = [b"%b: %b\r\n" % header for header in (*self.default_headers, *headers)]
        if (b"connection", b"close") in headers:
            self.keep_alive = False
        elif not self.keep_alive:
            head.append(b"connection: close\r\n")
        content = b"" if self.scope["method"] == "HEAD" else body
        self.transport.write(b"".join([STATUS_LINE[start["status"]], *head, b"\r\n", content]))
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


# uvicorn's method takes the class of its cycles from its module's globals, and offers no other way
# to choose it. This is the same code with our class as that global. (Assigning `__class__` to each
# cycle would cost 2 µs per request: the interpreter then loses its fast attribute access.)
_on_headers_complete = FunctionType(
    HttpToolsProtocol.on_headers_complete.__code__,
    {**vars(httptools_impl), "RequestResponseCycle": Cycle},
)
