"""How responses are read from a connection: as browsers and curl read them, with bounds of ours.

aiohttp's parser refuses a whole response for bytes after its end. Here it gets one header block at
a time, as regular_heads.py straightens it, and nothing after the end; a connection with such a
surplus is closed.
"""

from typing import Any

from aiohttp.client_exceptions import ClientPayloadError
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from tandem_worker.connectors.http.decoding import DecodedBody, codings
from tandem_worker.connectors.http.regular_heads import plain_head, regular_head

MAX_HEADER_BYTES = 64 << 10  # of one header, and of the status line
MAX_HEADERS = 1000
MAX_HEAD_BYTES = 256 << 10  # of all headers together

_STATUS_LINE = b"HTTP/"


class HeadersTooLarge(BadHttpMessage):
    """The headers of a response pass a bound, which `message` names."""


class ResponseHead:
    """The header block of a response, however small its pieces: each byte is scanned once."""

    __slots__ = ("_line_start", "_lines", "data")

    def __init__(self, data: bytearray | None = None) -> None:
        self.data = bytearray() if data is None else data
        self._line_start = 0
        self._lines = 0

    def add(self, piece: bytes) -> int | None:
        """Add the next piece. Returns where the block ends, if it does.

        Raises HeadersTooLarge.
        """
        seen = len(self.data)
        self.data += piece
        empty = self.data.find(b"\n\r\n", max(seen - 2, 0))
        bare = self.data.find(b"\n\n", max(seen - 1, 0), empty if empty >= 0 else None)
        found = bare + 2 if bare >= 0 else empty + 3 if empty >= 0 else None
        end = len(self.data) if found is None else found
        self._check(seen, end)
        return found

    def _check(self, seen: int, end: int) -> None:
        if end > MAX_HEAD_BYTES:
            raise HeadersTooLarge(f"the headers have more than {MAX_HEAD_BYTES >> 10} KiB together")
        self._lines += self.data.count(b"\n", seen, end)
        if self._lines > MAX_HEADERS + 2:  # the status line and the empty line
            raise HeadersTooLarge(f"there are more than {MAX_HEADERS} headers")
        start = self._line_start
        while end - start > MAX_HEADER_BYTES:
            line_end = self.data.find(b"\n", max(seen, start), end)
            if (end if line_end < 0 else line_end) - start > MAX_HEADER_BYTES:
                raise HeadersTooLarge(f"a header has more than {MAX_HEADER_BYTES >> 10} KiB")
            start = line_end + 1
        last = self.data.rfind(b"\n", seen, end)
        self._line_start = start if last < 0 else last + 1


class ResponseProtocol(ResponseHandler):
    """A connection that forgives what curl forgives."""

    _head: ResponseHead | None = None  # of the response that is awaited, or None in its body
    _transfer_codings: list[str] = []  # noqa: RUF012 - replaced, never changed
    _complete = False
    _body: StreamReader | None = None

    def set_response_params(self, **params: Any) -> None:
        self._head, self._complete, self._body = ResponseHead(), False, None
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        while data and self._head is not None and self._parser is not None and not self._upgraded:
            data = self._take_head(self._head, data)
        if self._complete and data:
            # Surplus after a complete response: the connection is no longer in step.
            self._disconnect()
        elif self._head is None or self._parser is None or self._upgraded:
            super().data_received(data)

    def _take_head(self, head: ResponseHead, data: bytes) -> bytes:
        """Parse the header block if it is complete, and return what follows it."""
        if not head.data:
            if plain := plain_head(data):
                self._head, self._transfer_codings = None, []
                super().data_received(data[:plain])
                return data[plain:]
            data = data.lstrip(b"\r\n")
        try:
            end = head.add(data)
        except HeadersTooLarge as error:
            self._head = None
            self._disconnect()
            self.set_exception(error)
            return b""
        if not _STATUS_LINE.startswith(head.data[: len(_STATUS_LINE)]):
            self._head = None
            return bytes(head.data)  # not HTTP: the parser says so
        if end is None:
            return b""
        self._head = None
        self._take_regular(bytes(head.data[:end]))
        return bytes(head.data[end:])

    def _take_regular(self, head: bytes) -> None:
        try:
            regular, self._transfer_codings = regular_head(head)
        except BadHttpMessage as error:
            self._disconnect()
            self.set_exception(error)
        else:
            super().data_received(regular)

    def _disconnect(self) -> None:
        self.force_close()
        if self.transport is not None:
            self.transport.close()

    def feed_data(self, data: Any, size: int = 0) -> None:
        message, payload = data
        declared = message.headers.getall("Content-Encoding", ())
        names = codings(declared) + self._transfer_codings if declared else self._transfer_codings
        decoded = names and payload is not EMPTY_PAYLOAD
        body = DecodedBody(self, payload, names, self._loop) if decoded else payload
        if message.code in (307, 308):
            # The request that follows may be a POST, which is not sent again if the server is just
            # closing this connection.
            self.force_close()
        super().feed_data((message, body), size)
        if message.code < 200 and message.code != 101:
            self._head = ResponseHead()  # an interim response: another one follows
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
        if head is not None and head.data and self._parser is not None:
            super().data_received(bytes(head.data))
        super().connection_lost(exc)
