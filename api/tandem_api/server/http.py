"""HTTP/1.1 by uvicorn and httptools, with limits on what one connection may take.

Limited are the size of a head and its time, the requests that wait for the answer to an earlier one
(pipelining), and a body that still comes after its answer.

Connections that are upgraded continue in `websocket.py`.
"""

import asyncio
from http import HTTPStatus
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tandem_api.http.body import BODY_COMPLETE
from tandem_api.http.memory import MemoryBudget
from tandem_api.http.problems import MEDIA_TYPE, status_problem
from tandem_api.server.cycle import PausableFlow, begin_cycle
from tandem_shared.settings import Settings

SOCKET_PATH = b"/v1/stream"  # the only path that offers an upgrade to WebSocket
MAX_HEAD_BYTES = 64 << 10  # of a request's head, and of what follows the last chunk of a body
HEAD_SECONDS = 30.0  # from the connection, or from the first byte of a next head, to its end
LINGER_SECONDS = 1.0  # from a refusal to closing its connection, see `_refuse`
# Of the requests that wait, over all connections. While there is room, one connection may send as
# many as the kernel hands over at once.
PIPELINED_BYTES = 16 << 20
# That a connection may have waiting while it is read on, which is how its end is noticed.
READ_ON_BYTES = 4 << 10
DISCARD_SECONDS = 5.0  # for the rest of a body whose response is complete
DISCARD_BYTES = 16 << 20  # of it
VERSION = b" HTTP/"  # in every request line

_COMPLETE: dict[str, Any] = {BODY_COMPLETE: {}}  # shared by all scopes, and never changed


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, with a limit on the size of a head and on the time it takes to arrive.

    The parser keeps bytes in memory until it reports progress, so they are counted from one report
    to the next. Bytes that are not HTTP get a problem in response. An upgrade other than to the
    WebSocket is treated as an ordinary request.

    A request costs far more memory than its bytes. So while one waits for its response, what
    follows it is kept as bytes and not parsed.
    """

    flow: PausableFlow
    _silent_bytes = 0  # since the parser's last progress
    _in_message = False  # after a complete head, until the end of its body
    _refused = False
    _unknown_coding = False  # a Transfer-Encoding other than chunked
    _head_timer: asyncio.TimerHandle | None = None
    _held = b""  # not parsed yet, from `_held_at` on
    _held_at = 0
    _discard_timer: asyncio.TimerHandle | None = None
    _discarded_bytes = 0

    def __init__(self, *args: Any, pipelined: MemoryBudget | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._pipelined = MemoryBudget(PIPELINED_BYTES) if pipelined is None else pipelined

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        """Starts the timer for the first head."""
        super().connection_made(transport)
        self.flow = PausableFlow(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timers, and drops what was not parsed."""
        super().connection_lost(exc)
        self._stop_timer()
        self._stop_discarding()
        self._drop_held()

    def data_received(self, data: bytes) -> None:
        """Parses the data, or keeps it while a request waits for its response."""
        if self._refused:
            return
        cycle = self.cycle
        idle = cycle is None or cycle.response_complete or self._in_message
        if idle and data.count(VERSION) < 2 and not self._held:
            self._parse(data)  # at most one request, as nearly all clients send them
            return
        at = 0 if self._held or self._is_waiting() else self._parse_next(data, 0)
        if at < len(data):
            self._hold(data[at:])

    def on_response_complete(self) -> None:
        """Continues with the next request."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._drop_held()
        elif self._in_message and self.cycle.response_complete:
            self._discard_timer = self.loop.call_later(DISCARD_SECONDS, self.transport.close)
        elif self._held and not self._is_waiting():
            at = self._parse_next(self._held, self._held_at)
            if at < len(self._held):
                self._held_at = at
            else:
                self._drop_held()
                self.flow.unblock()

    # Requests that wait.

    def _is_waiting(self) -> bool:
        """Whether a whole request has no complete response yet."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and not self._in_message

    def _parse_next(self, data: bytes, at: int) -> int:
        """Parses from `at` on, to the end or until a request is whole; returns where it stopped.

        A request is whole before the second request line that follows has its version. Two may be
        if a read ended within the version of the first.
        """
        first = data.find(VERSION, at)
        end = -1 if first < 0 else data.find(VERSION, first + 1)
        while end >= 0:
            self._parse(data[at:end])
            if self._refused or self.transport.is_closing():
                return len(data)
            at = end
            if self._is_waiting():
                return at
            end = data.find(VERSION, at + 1)
        self._parse(data[at:] if at else data)
        return len(data)

    def _hold(self, data: bytes) -> None:
        if not self._pipelined.take(len(data)):
            # RFC 9112 (9.3.2): the client repeats requests that get no response.
            self._end_after_response()
            return
        self._pipelined.give_back(self._held_at)
        self._held, self._held_at = self._held[self._held_at :] + data, 0
        if len(self._held) > READ_ON_BYTES:
            self.flow.block()

    def _drop_held(self) -> None:
        self._pipelined.give_back(len(self._held))
        self._held, self._held_at = b"", 0

    def _end_after_response(self) -> None:
        """Ignores what follows, and closes once the requests before it are answered."""
        self._refused = True
        self.cycle.keep_alive = False
        self._drop_held()
        self._stop_timer()

    def _parse(self, data: bytes) -> None:
        """Refuses a head that is too large."""
        while not self._in_message and len(data) > (room := MAX_HEAD_BYTES - self._silent_bytes):
            # A single read may exceed the limit.
            self._feed(data[:room])
            if self._silent_bytes >= MAX_HEAD_BYTES:
                self._refuse(431, f"the head of the request has more than {MAX_HEAD_BYTES} bytes")
            if self._refused or self.transport.is_closing():
                return
            data = data[room:]
        self._feed(data)
        if self._silent_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"more than {MAX_HEAD_BYTES} bytes follow the body")
        elif self._silent_bytes and self._head_timer is None and not self._in_message:
            self._start_timer()

    def _feed(self, data: bytes) -> None:
        # As uvicorn does, without a line in the log for each client that does not speak HTTP.
        self._silent_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
        except httptools.HttpParserError:
            self._refuse(400, "the request is not valid HTTP/1.1")

    # Called by the parser as it makes progress.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # The parser does not say how many bytes of this read belong to the head.
        self._silent_bytes = self._silent_bytes or 1

    def on_header(self, name: bytes, value: bytes) -> None:
        """Adds a header; drops trailers, which RFC 9110 (6.5.1) forbids to treat as headers."""
        if self._in_message:
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            self._unknown_coding = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._silent_bytes = 0
        if self._refused:
            return
        self._stop_timer()
        if self.parser.get_http_version() not in ("1.1", "1.0"):
            self._refuse(505, "this service speaks HTTP/1.1")
        elif self._unknown_coding:
            self._refuse(501, "the only Transfer-Encoding is chunked")
        elif self.pipeline:
            # No client sends requests that `_parse_next` does not tell apart.
            self._refused = True
            self.transport.close()
        else:
            self._in_message = True
            begin_cycle(self)

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        if self._refused:
            return
        if self._discard_timer is not None:
            self._discarded_bytes += len(body)
            if self._discarded_bytes > DISCARD_BYTES:
                self.flow.block()  # until the timer closes the connection
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._silent_bytes, self._in_message = 0, False
        if self._refused:
            return
        self._stop_discarding()
        self.scope["extensions"] = _COMPLETE
        super().on_message_complete()

    def _stop_discarding(self) -> None:
        if self._discard_timer is not None:
            self._discard_timer.cancel()
            self._discard_timer = None
            self._discarded_bytes = 0

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
        if self.parser.get_http_version() != "1.1":  # RFC 6455 (4.1)
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

    def _refuse(self, status: int, detail: str) -> None:
        if self.transport.is_closing() or self._refused:
            return
        if self._is_waiting():
            self._end_after_response()  # what follows the request does not cost it its response
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
            f"content-length: {len(body)}\r\nx-content-type-options: nosniff\r\n"
            "connection: close\r\n\r\n"
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
