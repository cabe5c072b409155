"""WebSocket by uvicorn and websockets, with bounds on what a client may send and leave unread."""

import asyncio
from typing import Any

import msgspec
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Response
from websockets.server import ServerProtocol

from tandem_api.http.problems import MEDIA_TYPE, status_problem

MAX_MESSAGE_BYTES = 64 << 10
MAX_FRAGMENTS = 64  # of one message
PING_SECONDS = 20.0
PONG_SECONDS = 60.0  # for a pong, from the last message sent to the client
STALLED_SECONDS = 60.0  # without reading anything while data waits, until a client is dropped


class Handshake(ServerProtocol):
    """The protocol of a connection, which refuses a handshake with a problem."""

    def reject(self, status: Any, text: str) -> Response:
        """The response instead of an upgrade."""
        response = super().reject(status, text)
        response.body = msgspec.json.encode(
            status_problem(int(status), text.partition("\n")[0]).members("/v1/stream")
        )
        for name, value in (
            ("Content-Type", MEDIA_TYPE),
            ("Content-Length", str(len(response.body))),
        ):
            del response.headers[name]
            response.headers[name] = value
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, with limits on what a client leaves unread or incomplete.

    A client may be slow: as long as it reads something within STALLED_SECONDS it is served, and its
    pongs may be as late as the messages before them.
    """

    _sent_at = 0.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = Handshake(max_size=self.config.ws_max_size, logger=self.logger)

    def data_received(self, data: bytes) -> None:
        """Handles the data; closes the connection after a head that is not a handshake."""
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            self.close_sent = self.handshake_complete = True
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def handle_cont(self, event: Frame) -> None:
        """Adds a fragment. They are counted, since the limit in bytes does not bound empty ones."""
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        else:
            self._fail(1009, f"a message has at most {MAX_FRAGMENTS} fragments")

    def send_receive_event_to_app(self) -> None:
        """Passes a message on, unless it is text that is not UTF-8."""
        try:
            if self.curr_msg_data_type == "text":
                b"".join(self.frames).decode()
        except UnicodeDecodeError:
            self._fail(1007, "text must be UTF-8")
        else:
            super().send_receive_event_to_app()

    def _fail(self, code: int, reason: str) -> None:
        self.frames = []
        if not self.close_sent:
            self.conn.fail(code, reason)
            self.handle_parser_exception()

    def handle_ping(self) -> None:
        """Sends a pong, unless the client reads none: RFC 6455 (5.5.3) allows skipping some."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def keepalive_timeout(self) -> None:
        """Closes the connection PONG_SECONDS after the last message to the client."""
        left = self._sent_at + PONG_SECONDS - self.loop.time()
        if left > 0:
            self.pong_timer = self.loop.call_later(left, self.keepalive_timeout)
        else:
            super().keepalive_timeout()

    async def send(self, message: Any) -> None:
        """Sends once there is room. Raises ClientDisconnected after STALLED_SECONDS."""
        if not self.writable.is_set():
            try:
                async with asyncio.timeout(STALLED_SECONDS):
                    await self.writable.wait()
            except TimeoutError:
                self.transport.abort()  # a close frame would queue behind the unread data
                raise ClientDisconnected from None
        if message["type"] == "websocket.http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *self.default_headers]}
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            # Refused, which uvicorn would log as an error of the application.
            self.handshake_complete = True
        self._sent_at = self.loop.time()
