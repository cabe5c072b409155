"""WebSocket as uvicorn speaks it, with bounds on what a client may send, and on how long it may leave data unread."""

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Response
from websockets.server import ServerProtocol

from tandem_api.http.problems import MEDIA_TYPE, of_status

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

LONGEST_MESSAGE = 64 << 10  # bytes
FRAGMENTS = 64  # of one message
PING = 20.0  # seconds
# seconds that a client may take to answer a ping, counted anew from each message that it is sent
PONG = 60.0
STALLED = 60.0  # seconds that a client may read nothing while there is something for it


class Handshake(ServerProtocol):
    """The state of the connection; what it refuses is a problem like any other."""

    def reject(self, status: Any, text: str) -> Response:
        """The answer instead of an upgrade."""
        response = super().reject(status, text)
        response.body = msgspec.json.encode(
            of_status(int(status), text.partition("\n")[0]).members("/v1/stream")
        )
        for name, value in (
            ("Content-Type", MEDIA_TYPE),
            ("Content-Length", str(len(response.body))),
        ):
            del response.headers[name]
            response.headers[name] = value
        return response


class SocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, where no client makes this process keep what it never reads, or what it never ends.

    A slow client is one that reads slowly: as long as it takes something in `STALLED` seconds it
    keeps its pace, and its answers to pings may be as late as the messages before them.
    """

    _sent_at = 0.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = Handshake(max_size=self.config.ws_max_size, logger=self.logger)

    def data_received(self, data: bytes) -> None:
        """Takes what came; a head that is no handshake ends the connection."""
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            self.close_sent = self.handshake_complete = True
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    def handle_cont(self, event: Frame) -> None:
        """One more fragment: empty ones are in no limit of bytes."""
        if len(self.frames) < FRAGMENTS:
            super().handle_cont(event)
        else:
            self._fail(1009, "a message has too many fragments")

    def send_receive_event_to_app(self) -> None:
        """Hands a message on if it can be read."""
        try:
            if self.curr_msg_data_type == "text":
                b"".join(self.frames).decode()
        except UnicodeDecodeError:
            self._fail(1007, "text is UTF-8")
        else:
            super().send_receive_event_to_app()

    def _fail(self, code: int, reason: str) -> None:
        self.frames = []
        if not self.close_sent:
            self.conn.fail(code, reason)
            self.handle_parser_exception()

    def handle_ping(self) -> None:
        """Answers, unless answers pile up already: who asks without reading gets none (RFC 6455, 5.5.3)."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def keepalive_timeout(self) -> None:
        """Gives a client up that has answered nothing, once what it was sent last is old enough."""
        left = self._sent_at + PONG - self.loop.time()
        if left > 0:
            self.pong_timer = self.loop.call_later(left, self.keepalive_timeout)
        else:
            super().keepalive_timeout()

    async def send(self, message: "ASGISendEvent") -> None:
        """Sends once there is room; raises ClientDisconnected where there is none for too long."""
        if not self.writable.is_set():
            try:
                async with asyncio.timeout(STALLED):
                    await self.writable.wait()
            except TimeoutError:
                self.transport.abort()  # a close frame would stand behind all that is not read
                raise ClientDisconnected from None
        await super().send(message)
        self._sent_at = self.loop.time()
