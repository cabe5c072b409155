"""One request and its answer on a connection, as uvicorn has them, with two things that ASGI has no words for.

`scope["extensions"]` names them, as ASGI wants it: ANSWER, a message that is a whole answer, which goes out in one
write where head and body would be two; and WHOLE, when all that is left of the body is here, so that nobody waits.
"""

from typing import Any

from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, STATUS_LINE, RequestResponseCycle

ANSWER = "tandem.answer"  # {"type": ANSWER, "status", "headers" (with the length of the body), "body"}
WHOLE = "tandem.whole"

# Of a scope: shared, since nobody changes them.
COMING: dict[str, Any] = {ANSWER: {}}
CAME: dict[str, Any] = {ANSWER: {}, WHOLE: {}}


class Exchange(RequestResponseCycle):
    """uvicorn's, which takes a whole answer too."""

    async def send(self, message: Any) -> None:
        """Sends a part of the answer, or all of it."""
        # Of several requests that came together, uvicorn tells only the last that the client has gone.
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
        if HEADER_RE.search(b"".join(names)) or HEADER_VALUE_RE.search(b"".join([value for _, value in headers])):
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
