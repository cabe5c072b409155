"""The elements of a JSON array of any length, one after the other, as they stand."""

import json
import re
from collections.abc import Iterator

from tandem_worker.errors import Permanent

MAX_ELEMENT_CHARS = 16 << 20
_MARGIN_CHARS = 16  # an error this close to the end of the buffer may be a token that is cut there
_SPACE = re.compile(r"[ \t\r\n]*")


def elements(texts: Iterator[str]) -> Iterator[str]:
    """The text of each element of the array that `texts` joined are; they may be cut anywhere.

    Raises Permanent: `invalid_file` for anything but an array, `too_large` for an element above
    MAX_ELEMENT_CHARS.
    """
    array = _Window(texts)
    if array.take() != "[":
        raise _invalid("does not start with [")
    mark = array.look()
    if mark == "]":
        array.take()
    while mark != "]":
        yield array.value()
        mark = array.take()
        if mark not in (",", "]"):
            raise _invalid("lacks a comma" if mark else "ends too early")
    if array.look():
        raise _invalid("is followed by something else")


class _Window:
    """The part of the text that is in memory, and the position in it."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts = texts
        self._buffer = ""
        self._at = 0
        # msgspec cannot say where a value ends; the standard library's decoder can.
        self._decode = json.JSONDecoder().raw_decode

    def look(self) -> str:
        """The next character that is not a space; "" at the end."""
        while True:
            if space := _SPACE.match(self._buffer, self._at):
                self._at = space.end()
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._extend():
                return ""

    def take(self) -> str:
        """Like `look`, and move past that character."""
        mark = self.look()
        self._at += 1
        return mark

    def value(self) -> str:
        """The value at this position, moving past it."""
        self.look()
        while True:
            end = self._end()
            # A number that reaches the end of the buffer may continue: 1 can be a cut 1.5.
            if end is not None and self._buffer[end : end + 1] in _AFTER_VALUE:
                start, self._at = self._at, end
                return self._buffer[start:end]
            if end is not None and end < len(self._buffer) - _MARGIN_CHARS:
                raise _invalid("lacks a comma")
            if len(self._buffer) - self._at > MAX_ELEMENT_CHARS:
                message = f"an element of the array has more than {MAX_ELEMENT_CHARS} characters"
                raise Permanent("too_large", message)
            if not self._extend():
                raise _invalid("ends too early")

    def _end(self) -> int | None:
        try:
            return self._decode(self._buffer, self._at)[1]
        except json.JSONDecodeError as error:
            # The decoder reports a cut string at its start, other cut values at the end.
            cut = error.pos >= len(self._buffer) - _MARGIN_CHARS
            if cut or error.msg.startswith("Unterminated"):
                return None
            raise _invalid(f"is malformed: {error.msg}") from None
        except (ValueError, RecursionError) as error:
            raise _invalid(f"cannot be read: {error}") from None

    def _extend(self) -> bool:
        """Double what is left in the buffer, so that a long value is decoded only a few times."""
        rest = self._buffer[self._at :]
        parts, size = [rest], 0
        while size <= len(rest) and (more := next(self._texts, None)) is not None:
            parts.append(more)
            size += len(more)
        self._buffer, self._at = "".join(parts), 0
        return size > 0


_AFTER_VALUE = {" ", "\t", "\r", "\n", ",", "]"}


def _invalid(what: str) -> Permanent:
    return Permanent("invalid_file", f"the JSON array {what}")
