"""An iterator of bytes as a file that is read once, front to back."""

from collections.abc import Iterator


class PieceReader:
    """Reads from pieces of any size."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; empty at the end."""
        parts = []
        while size > 0:
            if not self._rest:
                piece = next(self._pieces, b"")
                if not piece:
                    break
                self._rest = memoryview(piece)
            part, self._rest = self._rest[:size], self._rest[size:]
            size -= len(part)
            parts.append(part)
        return b"".join(parts)
