"""The one file of a multipart/form-data body (RFC 7578), streamed without a temporary file."""

import logging
from collections import deque
from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from tandem_api.http.parameters import header_options
from tandem_shared.errors import Invalid, Malformed, TooLarge

# It logs each malformed body, with which any client could fill the log.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

MAX_OVERHEAD_BYTES = 64 << 10  # of a body besides its file: part headers, boundaries, other fields


class FilePart:
    """After `await open()`, `name` and `content_type` are known, and `chunks()` is the file.

    Other fields are ignored. Raises Malformed, TooLarge for more than MAX_OVERHEAD_BYTES of them,
    and Invalid unless the form has exactly one file.
    """

    def __init__(self, body: AsyncIterator[bytes], content_type: str) -> None:
        self.name: str | None = None
        self.content_type: str | None = None
        self._body = body
        self._data: deque[bytes] = deque()  # of the file, from one chunk of the body at most
        self._found = False
        self._in_file = False
        self._ended = False
        self._overhead = 0
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._headers: dict[bytes, str] = {}
        boundary = header_options(content_type)[1].get(b"boundary")
        if not boundary:
            raise Malformed("the Content-Type has no boundary")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begin,
                    "on_header_field": lambda data, start, end: self._header[0].extend(
                        data[start:end]
                    ),
                    "on_header_value": lambda data, start, end: self._header[1].extend(
                        data[start:end]
                    ),
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise Malformed(f"the multipart body is malformed: {error}") from None

    async def open(self) -> None:
        """Reads up to the file."""
        while not self._found and await self._feed():
            pass
        if not self._found:
            raise Invalid([("", "the form has no file: send one part with a filename")])

    async def chunks(self) -> AsyncIterator[bytes]:
        """The file's bytes; reads the body to its end."""
        while True:
            while self._data:
                yield self._data.popleft()
            if not await self._feed():
                return

    async def _feed(self) -> bool:
        """Parses one more chunk of the body; False at its end."""
        chunk = await anext(self._body, None)
        if chunk is None:
            if not self._ended:
                raise Malformed("the multipart body ends before its last boundary")
            return False
        if not self._ended:
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise Malformed(f"the multipart body is malformed: {error}") from None
        self._overhead += len(chunk) - sum(map(len, self._data))
        if self._overhead > MAX_OVERHEAD_BYTES:
            raise TooLarge("the form without its file", MAX_OVERHEAD_BYTES)
        return True

    def _part_begin(self) -> None:
        self._headers, self._in_file = {}, False

    def _header_end(self) -> None:
        field, value = self._header
        self._headers[bytes(field).lower()] = value.decode("latin-1")
        self._header = (bytearray(), bytearray())

    def _headers_finished(self) -> None:
        options = header_options(self._headers.get(b"content-disposition", ""))[1]
        if b"filename" not in options:
            return
        if self._found:
            raise Invalid([("", "the form has more than one file: upload each separately")])
        self._found = self._in_file = True
        # Browsers and curl send UTF-8, and write a quote as %22.
        self.name = options[b"filename"].decode(errors="replace").replace("%22", '"')
        self.content_type = self._headers.get(b"content-type")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._data.append(data[start:end])

    def _end(self) -> None:
        self._ended = True
