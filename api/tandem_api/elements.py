"""The elements of a JSON array of which some are nested too deeply for a decoder: cut out without reading them."""

import asyncio
import re
from contextlib import suppress

import msgspec

from tandem_api.http.body import decode
from tandem_shared.errors import Invalid, Malformed, TooLarge

BREATH = 5000  # tokens after which others get their turn, some milliseconds
MOST = 4_000_000  # tokens that are looked at, two seconds of work

# Nothing here backtracks: a string that does not end is a token as well.
_STRING = rb'"(?:[^"\\]++|\\.)*+"?'
_OPEN = re.compile(rb"[ \t\r\n]*\[")
_OUTER = re.compile(rb'[^"\[\]{},]*+(' + _STRING + rb"|[\[{]+|[\]}]|,)", re.DOTALL)
_INNER = re.compile(rb'[^"\[\]{}]*+(' + _STRING + rb"|[\[{]+|[\]}]+)", re.DOTALL)

_raw = msgspec.json.Decoder(msgspec.Raw)


async def elements(body: bytes, most: int) -> list[bytes]:
    """The elements as they stand. What is wrong inside of one that is too deep is not seen.

    Raises Malformed for what else is no JSON, TooLarge for more than `most`, and Invalid where the
    array ends in the depths, or has more brackets and strings than MOST.
    """
    opened = _OPEN.match(body)
    if opened is None:
        raise Malformed("the JSON is malformed: expected an array")
    found: list[bytes] = []
    start = at = opened.end()
    depth, tokens = 1, 0
    while token := (_OUTER if depth == 1 else _INNER).match(body, at):
        at, word = token.end(), token[1]
        if word[0] in b"[{":
            depth += len(word)
        elif word[0] in b"]}":
            if len(word) >= depth:
                return [*found, _last(body, start, token.start(1) + depth - 1)]
            depth -= len(word)
        elif word == b",":
            found.append(_checked(body[start : token.start(1)]))
            start = at
            if len(found) >= most:
                raise TooLarge("the array", most, "items")
        tokens += 1
        if tokens % BREATH == 0:
            if tokens >= MOST:
                raise Invalid([("", "has an item that is nested too deeply")])
            await asyncio.sleep(0)
    decode(body[start:], _raw)
    raise Malformed("the JSON is malformed: the array does not end")


def _last(body: bytes, start: int, end: int) -> bytes:
    if body[end + 1 :].strip(b" \t\r\n"):
        raise Malformed("the JSON is malformed: trailing characters")
    return _checked(body[start:end])


def _checked(element: bytes) -> bytes:
    element = element.strip(b" \t\r\n")
    if not element:
        raise Malformed("the JSON is malformed: an item is missing")
    with suppress(Invalid):  # too deep, which is told in its place
        decode(element, _raw)
    return element
