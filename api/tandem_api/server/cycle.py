"""One request and its response, as bytes on a connection."""

from types import FunctionType
from typing import Any

from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)


class PausableFlow(FlowControl):
    """uvicorn's, which resumes reading with each `receive`, except while it is `blocked`."""

    blocked = False

    def block(self) -> None:
        """Pauses reading until `unblock`."""
        self.blocked = True
        self.pause_reading()

    def unblock(self) -> None:
        """Resumes reading."""
        self.blocked = False
        self.resume_reading()

    def resume_reading(self) -> None:
        """Resumes reading, unless it is blocked."""
        if not self.blocked:
            super().resume_reading()


class Cycle(RequestResponseCycle):
    """uvicorn's, except that a response whose body is one message is sent by one write.

    uvloop passes each write to the kernel, and a second one takes 5 µs, which is 7 % of a POST. So
    the head is held back until the body's first message, which even a stream sends at once.

    The response to an HTTP/1.0 request is never chunked: its end is that of the connection.
    """

    _start: Any = None  # the head that is held back
    _until_close = False  # the body ends with the connection

    async def send(self, message: Any) -> None:
        """Sends a part of the response, or holds it back."""
        # Of several pipelined requests, uvicorn marks only the last one as disconnected.
        self.disconnected = self.disconnected or self.transport.is_closing()
        if message["type"] == "http.response.abort":
            # The response has no end, so the client sees the cut.
            self.disconnected = True
            self.transport.close()
            return
        if message["type"] == "http.response.start" and not self.response_started:
            # The response counts as started, so that nothing else sends another one.
            self._start, self.response_started = message, True
            return
        start, self._start = self._start, None
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
            self.disconnected = self.disconnected or self.transport.is_closing()
        if start is not None:
            names = [name for name, _ in start["headers"]]
            if b"content-length" in names:
                if not message.get("more_body"):
                    if not self.disconnected:
                        self._send_whole(start, names, message["body"])
                    return
            elif self.scope["http_version"] == "1.0":
                self._until_close, self.chunked_encoding = True, False
            self.response_started = False
            await super().send(start)
        if self._until_close:
            self.expected_content_length = len(message.get("body", b""))
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
begin_cycle = FunctionType(
    HttpToolsProtocol.on_headers_complete.__code__,
    {**vars(httptools_impl), "RequestResponseCycle": Cycle},
)
