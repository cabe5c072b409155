"""Text files in pieces: decoded, cut into lines; encoding and delimiter by their start."""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Literal

from charset_normalizer import from_bytes

from tandem_worker.charsets import charset
from tandem_worker.errors import Permanent

MAX_LINE_CHARS = 16 << 20
SAMPLE_BYTES = 64 << 10  # enough to detect encoding, format and delimiter
DELIMITERS = ",;\t|"
_NEAR = 0.02  # on charset-normalizer's scale of disorder, from 0 to 1
# UTF-32 first: its little-endian mark starts with UTF-16's.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def peek(pieces: Iterable[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """The first `size` bytes or more, if there are as many, and an iterator over all bytes."""
    start, rest = b"", iter(pieces)
    while len(start) < size and (piece := next(rest, b"")):
        start += piece
    return start, chain((start,), rest)


def decoded(pieces: Iterable[bytes], encoding: str) -> Iterator[str]:
    """The text of the pieces; CR LF is never cut. Raises Permanent `invalid_file`."""
    decoder = codecs.getincrementaldecoder(encoding)()
    text = io.IncrementalNewlineDecoder(decoder, translate=False)
    try:
        for piece in pieces:
            yield text.decode(piece)
        yield text.decode(b"", final=True)
    except UnicodeError:
        name = encoding.removesuffix("-sig")
        message = f"the file is not all {name}; file.convert reads other encodings (`encoding`)"
        raise Permanent("invalid_file", message) from None


def lines(
    pieces: Iterable[bytes], encoding: str, *, newline: Literal["", "\n"] = "\n"
) -> Iterator[str]:
    """Lines with their ends, unchanged; with `newline=""` a lone CR ends a line, too.

    Raises Permanent: `invalid_file`, or `too_large` for a line above MAX_LINE_CHARS.
    """
    return chain.from_iterable(_line_lists(pieces, encoding, newline))


def _line_lists(pieces: Iterable[bytes], encoding: str, newline: str) -> Iterator[list[str]]:
    rest = ""
    for text in decoded(pieces, encoding):
        found = io.StringIO(text, newline).readlines()
        if text[-1:] in (newline or "\r\n"):
            found.append("")
        found[0] = rest + found[0]
        rest = found.pop()
        yield found
        if len(rest) > MAX_LINE_CHARS:
            raise Permanent("too_large", f"a line has more than {MAX_LINE_CHARS} characters")
    if rest:
        yield [rest]


def delimiter_of(sample: str) -> str:
    """The delimiter that splits most rows of the sample into as many fields as its first row.

    A first line `sep=;` names it, as Excel reads and writes it.
    """
    if named := re.match(r"\ufeff?[\r\n]*sep=([^\r\n])(?:[\r\n]|$)", sample):
        return named[1]
    best, best_score = ",", (0.0, 0)
    start = io.StringIO(sample, newline="").readlines()[:-1] or [sample]
    for delimiter in DELIMITERS:
        try:
            rows = [len(fields) for fields in csv.reader(start, delimiter=delimiter) if fields]
        except csv.Error:
            continue
        if rows and rows[0] > 1:
            score = (sum(row == rows[0] for row in rows) / len(rows), rows[0])
            if score > best_score:
                best, best_score = delimiter, score
    return best


def encoding_of(start: bytes) -> str:
    """The encoding of text that starts so: by its byte order mark, else UTF-8, else a guess."""
    for mark, name in _BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return name
    try:
        # An incremental decoder accepts a last character that the sample cuts.
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        guesses = from_bytes(start)
        best = guesses.best()
        # Prefer cp1252 when its score is within _NEAR of the best guess, and without any guess.
        if best is None or any(
            "cp1252" in guess.could_be_from_charset and guess.chaos <= best.chaos + _NEAR
            for guess in guesses
        ):
            return "cp1252"
        return best.encoding
    return "utf-8"


def check_encoding(name: str) -> str:
    """Python's name for the encoding. Raises ValueError unless it is a known text encoding."""
    try:
        found = charset(name)
    except LookupError:
        raise ValueError(f"{name!r} is not a known text encoding") from None
    return "utf-8-sig" if found == "utf-8" else found
