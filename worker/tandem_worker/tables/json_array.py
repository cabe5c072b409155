"""The elements of a JSON array of any length, one after the other, as they stand."""

import json
import re
from collections.abc import Callable, Iterator

from tandem_worker.errors import Permanent

STEP = 64 << 10  # characters that are read at once, at least
MAX_ELEMENT = 16 << 20  # characters
_AFTER = {" ", "\t", "\r", "\n", ",", "]"}
_SPACE = re.compile(r"[ \t\r\n]*")


def elements(read: Callable[[int], str]) -> Iterator[str]:
    """The texts of an array's elements; `read` gives the next characters, at most so many, and "" at the end.

    Raises Permanent: `invalid_file` for what is no array, `too_large` for an element above
    MAX_ELEMENT.
    """
    text = _Window(read)
    if text.mark() != "[":
        raise Permanent("invalid_file", "it is no JSON array")
    text.skip()
    mark = text.mark()
    if mark == "]":
        text.skip()
    while mark != "]":
        yield text.value()
        mark = text.mark()
        if mark not in (",", "]"):
            raise Permanent(
                "invalid_file",
                "its JSON array ends too early" if not mark else "a comma is missing in it",
            )
        text.skip()
    if text.mark():
        raise Permanent("invalid_file", "something follows its JSON array")


class _Window:
    """The part of the text that is being looked at."""

    def __init__(self, read: Callable[[int], str]) -> None:
        self._read = read
        self._buffer = ""
        self._at = 0
        # The only decoder that tells where in a text a value ends.
        self._find = json.JSONDecoder().raw_decode

    def mark(self) -> str:
        """The next character that is no space; none at the end."""
        while True:
            self._at = _end_of_space(self._buffer, self._at)
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        self._at += 1

    def value(self) -> str:
        """The value that stands there."""
        self.mark()
        while True:
            end = self._end()
            # A number at the end of the buffer may go on: 1 may be 1.5, and 1. is a cut 1.5 too.
            if end is not None and self._buffer[end : end + 1] in _AFTER:
                start, self._at = self._at, end
                return self._buffer[start:end]
            if end is not None and len(self._buffer) - end > 16:
                raise Permanent("invalid_file", "a comma is missing in its JSON array")
            if len(self._buffer) - self._at > MAX_ELEMENT:
                raise Permanent(
                    "too_large",
                    f"an element of its JSON array has more than {MAX_ELEMENT} characters",
                )
            if not self._more():
                raise Permanent("invalid_file", "its JSON array ends too early")

    def _end(self) -> int | None:
        try:
            return self._find(self._buffer, self._at)[1]
        except json.JSONDecodeError as error:
            # What is cut is missed at the very end, or is a string without its own.
            if error.pos < len(self._buffer) - 16 and not error.msg.startswith("Unterminated"):
                raise Permanent("invalid_file", f"it is no JSON: {error.msg}") from None
            return None
        except ValueError as error:
            raise Permanent("invalid_file", f"its JSON cannot be read: {error}") from None

    def _more(self) -> bool:
        rest = self._buffer[self._at :]
        # As much again: a long value is looked at a few times only.
        more = self._read(max(STEP, len(rest)))
        self._buffer, self._at = rest + more, 0
        return bool(more)


def _end_of_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()
