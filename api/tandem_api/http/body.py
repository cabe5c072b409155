"""Request bodies: read as they arrive, limited in size and time, never decompressed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tandem_api.http.memory import RequestMemory, Share
from tandem_api.http.parameters import header_options, headers_of, whole_number
from tandem_shared.errors import Invalid, Malformed, TooLarge

MAX_DEPTH = 64  # levels of JSON
BODY_SECONDS = 60.0  # for the body of one job
IDLE_SECONDS = 30.0  # without a byte, after which the request fails with 408
# An ASGI extension that our server adds once a whole body has arrived: `receive` returns at once
# then, and needs no timeout. A timeout takes 10 µs, which is 15 % of a POST.
BODY_COMPLETE = "tandem.body_complete"
JSON = "application/json"
NDJSON = "application/x-ndjson"
_NDJSON_TYPES = frozenset(
    b"application/" + name for name in (b"x-ndjson", b"ndjson", b"jsonl", b"x-jsonlines")
)

_any = msgspec.json.Decoder()


class JsonBytes(Response):
    """A response with JSON that is already encoded."""

    media_type = JSON


def content_type(request: Request, *, ndjson: bool = False) -> str:
    """JSON or, if `ndjson` is accepted, NDJSON. Raises HTTPException 415 for other types.

    A body without a type gets 415 too: any web page can send one to the API without asking first.
    """
    headers = headers_of(request)
    if headers.get("content-type") == JSON and "content-encoding" not in headers:
        return JSON  # as most clients send it
    refuse_coding(request, "the body")
    given = headers.get("content-type")
    if (
        given is None
        and headers.get("content-length", "0") == "0"
        and ("transfer-encoding" not in headers)
    ):
        return JSON  # no body, and the error about that says more
    media_type, parameters = header_options(given or "")
    if parameters.get(b"charset", b"utf-8").lower() in (b"utf-8", b"utf8"):
        if media_type == JSON.encode():
            return JSON
        if ndjson and media_type in _NDJSON_TYPES:
            return NDJSON
    expected = f"{JSON} or {NDJSON}" if ndjson else JSON
    raise HTTPException(415, f"send Content-Type: {expected}, in UTF-8")


def refuse_coding(request: Request, what: str) -> None:
    """Raises HTTPException 415 for a body with a Content-Encoding."""
    if headers_of(request).get("content-encoding", "identity").strip().lower() != "identity":
        raise HTTPException(415, f"send {what} without a Content-Encoding")


def refuse_length(request: Request, limit: int, what: str = "the body") -> None:
    """Raises TooLarge, before anything is read, for a Content-Length of more than `limit` bytes."""
    length = headers_of(request).get("content-length", "")
    if length.isdecimal() and whole_number(length) > limit:
        raise TooLarge(what, limit)


async def read_body(
    request: Request,
    limit: int,
    share: Share | None = None,
    *,
    total_seconds: float = BODY_SECONDS,
) -> bytes:
    """The whole body. Raises TooLarge above `limit` bytes, and HTTPException 408.

    A body times out after `total_seconds`, or after IDLE_SECONDS without a byte. Until it is
    complete it takes memory of `share`, or of the budget for bodies; raises Unavailable if there is
    none left.
    """
    refuse_length(request, limit)
    if BODY_COMPLETE in request.scope.get("extensions", ()):
        body, _ = await _receive(request)
        if len(body) > limit:
            raise TooLarge("the body", limit)
        return body
    if share is None:
        memory: RequestMemory = request.scope["state"]["memory"]
        with memory.bodies.share() as own:
            return await _read_slowly(request, limit, own, total_seconds)
    return await _read_slowly(request, limit, share, total_seconds)


async def _read_slowly(request: Request, limit: int, share: Share, total_seconds: float) -> bytes:
    loop = asyncio.get_running_loop()
    end = loop.time() + total_seconds
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout_at(min(end, loop.time() + IDLE_SECONDS)) as timeout:
            while True:
                chunk, more = await _receive(request)
                size += len(chunk)
                if size > limit:
                    raise TooLarge("the body", limit)
                share.resize(size)
                chunks.append(chunk)
                if not more:
                    return b"".join(chunks)
                timeout.reschedule(min(end, loop.time() + IDLE_SECONDS))
    except TimeoutError:
        raise HTTPException(
            408,
            f"the body did not arrive within {total_seconds:g} s, or paused for {IDLE_SECONDS:g} s",
        ) from None
    return b"".join(chunks)


async def body_chunks(request: Request, idle_seconds: float) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises HTTPException 408 after `idle_seconds` without a byte."""
    more = True
    while more:
        try:
            async with asyncio.timeout(idle_seconds):
                chunk, more = await _receive(request)
        except TimeoutError:
            raise HTTPException(408, f"no byte arrived for {idle_seconds:g} s") from None
        if chunk:
            yield chunk


async def _receive(request: Request) -> tuple[bytes, bool]:
    """The next bytes of the body, and whether more follow. Raises ClientDisconnect."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


def decode(body: bytes | msgspec.Raw, decoder: Any = _any) -> Any:
    """The JSON value. Raises Malformed for invalid JSON, and Invalid for JSON nested too deeply."""
    try:
        return decoder.decode(body)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError:
        raise Malformed("the JSON is malformed: it is not UTF-8") from None
    except msgspec.DecodeError as error:
        if not body:
            raise Malformed("the body is empty: send a JSON value") from None
        raise Malformed(f"the JSON is malformed: {_reason(error)}") from None


def _reason(error: msgspec.DecodeError) -> str:
    text = str(error).removeprefix("JSON is malformed: ").partition(" - at")[0]
    return text[:1].lower() + text[1:]


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object. Raises Malformed, and Invalid for other values and for deep nesting."""
    value = decode(body)
    if not isinstance(value, dict):
        raise Invalid([("", "must be a JSON object")])
    refuse_depth(value, body)
    return value


def refuse_depth(value: Any, body: bytes) -> None:
    """Raises Invalid for JSON that is nested more than MAX_DEPTH levels deep."""
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return  # too few brackets to be that deep
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> Invalid:
    return Invalid([("", f"is nested more than {MAX_DEPTH} levels deep")])
