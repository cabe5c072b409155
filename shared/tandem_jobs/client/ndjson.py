"""Splits the bytes of a stream into its NDJSON entries."""

import msgspec

from tandem_jobs.client.models import Entry
from tandem_jobs.client.transport import ConnectionLost
from tandem_shared.errors import Malformed

MAX_LINE_BYTES = 16 << 20  # an output item has at most 1 MiB

_entry = msgspec.json.Decoder(Entry)


class EntryDecoder:
    """Decodes the entries of one connection; a new connection needs a new decoder."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> tuple[list[Entry], bool]:
        """The entries completed by `data`, and whether it ended any line, heartbeats included.

        Raises Malformed for a line above MAX_LINE_BYTES, ConnectionLost for one that is not an
        entry.
        """
        first, *others = data.split(b"\n")
        self._rest.append(first)
        self._size += len(first)
        if self._size > MAX_LINE_BYTES:
            raise Malformed(f"the stream has a line of more than {MAX_LINE_BYTES} bytes")
        if not others:
            return [], False
        lines = [b"".join(self._rest), *others]
        self._rest, self._size = [lines.pop()], len(others[-1])
        try:
            return [_entry.decode(line) for line in lines if line.strip()], True
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConnectionLost(f"the stream has an invalid line: {error}") from None
