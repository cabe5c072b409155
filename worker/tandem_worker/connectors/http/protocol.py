"""How responses are read from a connection: as browsers and curl read them, with bounds of ours.

aiohttp's parser refuses a whole response for bytes after its end, for a repeated Content-Length,
and for one beside Transfer-Encoding. Here it gets one header block at a time, freed of those
lengths, and nothing after the end; a connection with such a surplus is closed.
"""

import re
from typing import Any

from aiohttp.client_exceptions import ClientPayloadError
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

MAX_HEADER_BYTES = 64 << 10  # of one header, and of the status line
MAX_HEADERS = 1000
MAX_HEAD_BYTES = 256 << 10  # of all headers together

_HEAD_END = re.compile(rb"\n\r?\n")
_LENGTH = re.compile(rb"(?im)^content-length[ \t]*:[ \t]*([^\r\n]*?)[ \t]*\r?\n")
_CHUNKED = re.compile(rb"(?im)^transfer-encoding[ \t]*:[^\r\n]*chunked")


class HeadersTooLarge(BadHttpMessage):
    """The headers of a response pass a bound, which `message` names."""


class ResponseProtocol(ResponseHandler):
    """A connection that forgives what curl forgives."""

    _head: bytes | None = None  # of the response that is awaited, or None in its body
    _complete = False
    _body: StreamReader | None = None

    def set_response_params(self, **params: Any) -> None:
        self._head, self._complete, self._body = b"", False, None
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        while data and self._head is not None and self._parser is not None and not self._upgraded:
            data = self._take_head(self._head + data)
        if self._complete and data:
            # Surplus after a complete response: the connection is no longer in step.
            self.force_close()
            if self.transport is not None:
                self.transport.close()
        elif self._head is None or self._parser is None or self._upgraded:
            super().data_received(data)

    def _take_head(self, data: bytes) -> bytes:
        """Parse the header block if it is complete, and return what follows it."""
        start = len(data) - len(data.lstrip(b"\r\n"))
        text = data[start : start + 5]
        if not b"HTTP/".startswith(text) and text != b"HTTP/":
            self._head = None
            return data  # not HTTP: the parser says so
        end = _HEAD_END.search(data, start)
        head = data[: end.end()] if end else data
        problem = _bound_passed(head)
        if problem is not None:
            self._head = None
            self.force_close()
            if self.transport is not None:
                self.transport.close()
            self.set_exception(HeadersTooLarge(problem))
            return b""
        if end is None:
            self._head = data
            return b""
        self._head = None
        super().data_received(_one_length(head))
        return data[end.end() :]

    def feed_data(self, data: Any, size: int = 0) -> None:
        message, payload = data
        super().feed_data(data, size)
        if message.code < 200 and message.code != 101:
            self._head = b""  # an interim response: another one follows
        elif payload is EMPTY_PAYLOAD:
            self._end()
        else:
            self._body = payload
            payload.on_eof(self._end)

    def _end(self) -> None:
        self._complete = not self._upgraded

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        if self._complete:
            self.force_close()  # the response is there, whatever comes after it
        else:
            super().set_exception(exc, *cause)
            # Without this, the reader of a body in broken chunks would wait for its timeout.
            if self._body is not None and self._body.exception() is None:
                self._body.set_exception(ClientPayloadError("the body is not valid"), exc)

    def connection_lost(self, exc: BaseException | None) -> None:
        head, self._head = self._head, None
        if head and self._parser is not None:
            super().data_received(head)
        super().connection_lost(exc)


def _bound_passed(head: bytes) -> str | None:
    if len(head) <= MAX_HEADER_BYTES and head.count(b"\n") <= MAX_HEADERS:
        return None
    if len(head) > MAX_HEAD_BYTES:
        return f"the headers have more than {MAX_HEAD_BYTES >> 10} KiB together"
    lines = head.split(b"\n")
    if any(len(line) > MAX_HEADER_BYTES for line in lines):
        return f"a header has more than {MAX_HEADER_BYTES >> 10} KiB"
    if len(lines) > MAX_HEADERS + 3:  # the status line, the empty line, and what follows it
        return f"there are more than {MAX_HEADERS} headers"
    return None


def _one_length(head: bytes) -> bytes:
    """The header block with equal lengths as one, or none if it is chunked (RFC 9112, 6.3)."""
    lengths = _LENGTH.findall(head)
    if not lengths:
        return head
    if _CHUNKED.search(head):
        return _LENGTH.sub(b"", head)
    values = [value.strip() for line in lengths for value in line.split(b",")]
    if len(values) == 1 or len({int(value) if value.isdigit() else value for value in values}) > 1:
        return head
    first = b"Content-Length: " + values[0] + b"\r\n"
    lines = iter((first,))
    return _LENGTH.sub(lambda _: next(lines, b""), head)
