"""Splits the bytes of a stream into its NDJSON entries."""

import msgspec

from tandem_jobs.client.models import Entry
from tandem_jobs.client.transport import Lost
from tandem_shared.errors import Malformed

LINE = 16 << 20  # bytes of one line of a stream; an item has at most 1 MiB


class Lines:
    """Puts the entries of NDJSON together from pieces; what a cut leaves of a line is lost with this object."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> tuple[list[Entry], bool]:
        """The entries that are whole by now, and whether any line is. Raises Malformed, Lost for what is none."""
        first, *others = piece.split(b"\n")
        self._rest.append(first)
        self._size += len(first)
        if self._size > LINE:
            raise Malformed(f"a line of the stream has more than {LINE} bytes")
        if not others:
            return [], False
        lines = [b"".join(self._rest), *others]
        self._rest, self._size = [lines.pop()], len(others[-1])
        try:
            return [_entry.decode(line) for line in lines if line.strip()], True
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Lost(f"the stream has a line that is no entry: {error}") from None


_entry = msgspec.json.Decoder(Entry)
