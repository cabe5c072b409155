"""The one file of a multipart/form-data body (RFC 7578), streamed: it is never on disk or in memory as a whole."""

from collections import deque
from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tandem_shared.errors import Invalid, Malformed, TooLarge

OVERHEAD = (
    64 << 10
)  # bytes of a body that may be other than the file's: headers, boundaries, other fields


class FilePart:
    """`await open()`, then `name` and `content_type` are known, then `chunks()` is the file.

    Fields beside the file are passed over. Raises Malformed, TooLarge for more than
    OVERHEAD bytes of them, and Invalid if there is no file or a second one.
    """

    def __init__(self, body: AsyncIterator[bytes], content_type: str) -> None:
        self.name: str | None = None
        self.content_type: str | None = None
        self._body = body
        self._data: deque[bytes] = deque()  # of the file, and of one chunk of the body at most
        self._files = 0
        self._in_file = False
        self._ended = False
        self._overhead = 0
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._headers: dict[bytes, str] = {}
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise Malformed("the Content-Type names no boundary")
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
            raise Malformed(f"no multipart body: {error}") from None

    async def open(self) -> None:
        """Read up to the file."""
        while not self._files and await self._feed():
            pass
        if not self._files:
            raise Invalid([("", "the form has no file: send one part with a filename")])

    async def chunks(self) -> AsyncIterator[bytes]:
        """The file's bytes; the body is read to its end."""
        while True:
            while self._data:
                yield self._data.popleft()
            if not await self._feed():
                return

    async def _feed(self) -> bool:
        """Parse one more chunk of the body; False at its end."""
        chunk = await anext(self._body, None)
        if chunk is None:
            if not self._ended:
                raise Malformed("the multipart body ends before its last boundary")
            return False
        if not self._ended:
            try:
                self._parser.write(chunk)
            except FormParserError as error:
                raise Malformed(f"no multipart body: {error}") from None
        self._overhead += len(chunk) - sum(map(len, self._data))
        if self._overhead > OVERHEAD:
            raise TooLarge("the form beside its file", OVERHEAD)
        return True

    def _part_begin(self) -> None:
        self._headers, self._in_file = {}, False

    def _header_end(self) -> None:
        field, value = self._header
        self._headers[bytes(field).lower()] = value.decode("latin-1")
        self._header = (bytearray(), bytearray())

    def _headers_finished(self) -> None:
        options = parse_options_header(self._headers.get(b"content-disposition"))[1]
        if b"filename" not in options:
            return
        if self._files:
            raise Invalid(
                [("", "the form has more than one file: upload each with a request of its own")]
            )
        self._files, self._in_file = 1, True
        # Browsers and curl send UTF-8 and spell a quote %22.
        self.name = options[b"filename"].decode(errors="replace").replace("%22", '"')
        self.content_type = self._headers.get(b"content-type")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._data.append(data[start:end])

    def _end(self) -> None:
        self._ended = True
