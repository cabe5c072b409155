"""HTTP/1.1 as uvicorn speaks it, with bounds on what a client may send before anybody knows what it wants.

An upgrade to WebSocket goes on in `upgrade.py`.
"""

import asyncio
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

import msgspec
from httptools import parse_url
from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from tandem_api.http.extensions import ANSWER, CAME, COMING
from tandem_api.http.problems import MEDIA_TYPE, of_status
from tandem_api.http.routing import SOCKETS

HEAD = 64 << 10  # bytes of a request's head, and of what follows the last chunk of a body
HEAD_TIME = 30.0  # seconds from the connection, or from a next head's first byte, to the head's end
# seconds in which what a refused client still sends is dropped, so that it gets to read why
LINGER = 1.0


class NoHostError(Exception):
    """No Host header, or several, which RFC 9112 (3.2) has refused: a proxy before us might obey another one."""


class Protocol(HttpToolsProtocol):
    """uvicorn's, where what is no HTTP is a problem too, and an upgrade that is not offered a plain request.

    What the parser has taken without giving anything for it is in memory: its bytes are counted
    from one sign of progress to the next, and a head has a time to come in.
    """

    _silent = 0  # bytes since the last sign of progress
    _in_message = False  # whether a head is complete, and its body not
    _refused = False
    _wrong = "this is no HTTP/1.1 request"
    _clock: asyncio.TimerHandle | None = None  # of the head that is waited for

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        """Begins to wait for a head."""
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        super().connection_lost(exc)
        self._stop_clock()

    def data_received(self, data: bytes) -> None:
        """Parses what came; refuses what is too much of it."""
        if self._refused:
            return
        while not self._in_message and len(data) > (room := HEAD - self._silent):
            # One read may bring more than a head may have.
            self._parse(data[:room])
            if self._silent >= HEAD:
                self._refuse(431, f"the head of the request has more than {HEAD} bytes")
            if self._refused or self.transport.is_closing():
                return
            data = data[room:]
        self._parse(data)
        if self._silent > HEAD:
            self._refuse(431, f"what follows the body has more than {HEAD} bytes")
        elif self._silent and self._clock is None and not self._in_message:
            self._start_clock()

    def _parse(self, data: bytes) -> None:
        self._silent += len(data)
        super().data_received(data)

    # The parser's signs of progress.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._silent = (
            self._silent or 1
        )  # in the middle of a read: how many more of it are its own is not known

    def on_headers_complete(self) -> None:
        """Begins to answer, or lets the request wait for the one before."""
        version = self.parser.get_http_version()
        if version == "1.1" and [name for name, _ in self.headers].count(b"host") != 1:
            self._wrong = "a request of HTTP/1.1 has one Host header"
            raise NoHostError  # the parser makes it one of its own errors
        self._silent, self._in_message = 0, True
        self._stop_clock()
        scope = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        if self.parser.should_upgrade() and self._should_upgrade():
            return
        url = parse_url(self.url)
        path = url.path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"], scope["query_string"] = url.path, url.query or b""
        scope["extensions"] = COMING
        before = self.cycle
        self.cycle = Exchange(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        self._silent = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._silent, self._in_message = 0, False
        self.scope["extensions"] = CAME
        super().on_message_complete()

    # The head's time.

    def _start_clock(self) -> None:
        self._clock = self.loop.call_later(HEAD_TIME, self._late)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _late(self) -> None:
        self._clock = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_clock()  # an answer is under way, which is not cut for what comes after it
        elif self._silent:
            self._refuse(408, f"the head of the request did not come within {HEAD_TIME:g} s")
        else:
            self.transport.close()

    # Upgrades.

    def _should_upgrade(self) -> bool:
        if not super()._should_upgrade() or self.parser.get_method() != b"GET":
            return False
        # An answer under way would end up among the frames.
        answered = self.cycle is None or self.cycle.response_complete
        return answered and self.url.partition(b"?")[0] == SOCKETS

    def handle_websocket_upgrade(self) -> None:
        """Hands the connection over; what comes in the same read after the head is none of a handshake."""
        self._stop_clock()
        self._refused = True
        super().handle_websocket_upgrade()

    # Refusals.

    def _unsupported_upgrade_warning(self) -> None:
        pass  # anybody could fill the logs with it

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the signature is uvicorn's own
        """Answers and closes."""
        self._refuse(400, self._wrong)

    def _refuse(self, status: int, detail: str) -> None:
        if self.transport.is_closing() or self._refused:
            return
        self._refused = True
        self._stop_clock()
        self._unset_keepalive_if_required()
        may_answer = self._may_answer()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not may_answer:
            self.transport.close()
            return
        body = msgspec.json.encode(of_status(status, detail).members())
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        # Closed with bytes unread, the connection would be reset, and the answer lost on its way.
        self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)

    def _may_answer(self) -> bool:
        """Whether an answer would be to what was sent last, and not in the middle of another."""
        if self.cycle is None:
            return True
        if self._in_message:
            return not (self.cycle.response_started or self.pipeline)
        return self.cycle.response_complete


class Exchange(RequestResponseCycle):
    """uvicorn's, which takes a whole answer too."""

    async def send(self, message: Any) -> None:
        """Sends a part of the answer, or all of it."""
        # Of several requests that came together, uvicorn tells only the last that the client has
        # gone.
        self.disconnected = self.disconnected or self.transport.is_closing()
        if message["type"] != ANSWER:
            await super().send(message)
            return
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if not self.disconnected:
            self._answer(message)

    def _answer(self, message: Message) -> None:
        if self.response_started:
            raise RuntimeError("the answer has begun already")
        self.response_started, self.waiting_for_100_continue = True, False
        headers: list[tuple[bytes, bytes]] = message["headers"]
        names = [name for name, _ in headers]
        if HEADER_RE.search(b"".join(names)) or HEADER_VALUE_RE.search(
            b"".join([value for _, value in headers])
        ):
            raise RuntimeError("a header of the answer is none")
        closing = (b"connection", b"close") in headers
        parts = [STATUS_LINE[message["status"]]]
        parts += [b"%b: %b\r\n" % header for header in self.default_headers]
        parts += [b"%b: %b\r\n" % header for header in headers]
        if closing:
            self.keep_alive = False
        elif not self.keep_alive:
            parts.append(b"connection: close\r\n")
        parts.append(b"\r\n")
        if self.scope["method"] != "HEAD":
            parts.append(message["body"])
        self.transport.write(b"".join(parts))
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
